"""`trimtab profile`: what every variant loses on real prompts, and what it takes on this device."""

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from controller.analyzer import Analyzer, PromptFeatures
from policies.simulation.profile import PROFILE, Origin, Profile, Prompts, load_profile
from policies.simulation.rates import fit_rates
from pruners.artefact.folder import Artefact
from pruners.data.corpus import Corpus
from pruners.support.checkpoint import Checkpoint
from pruners.support.errors import UserError
from pruners.support.files import check_folder
from pruners.support.progress import progress_bars
from pruners.variant import BASE
from server.catalogue import build_catalogue, open_sensitivity
from server.engine.config import DEFAULT_KV_BUDGETS, EngineConfig, ModelConfig
from server.engine.loading.artefact_lookup import declared_variants
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.engine.loading.source import model_name
from server.engine.offline import answer_all
from server.engine.runner_factory import build_runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.jobs.prompt_losses import EncodedPrompt, PromptLosses, measure_losses, read_prompts
from server.jobs.step_timing import STEPS, decode_step, time_variants, zeroed_decoder
from telemetry.energy import EnergyReader

_ROWS = (1, 2, 4, 8, 16)
_CACHED = (128, 768)
_PROMPTS = (32, 128, 256)
_REPEATS = 15
_MIN_PROMPTS = 40


class ProfilingError(UserError):
    """Nothing to profile. One clear line."""


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """What is profiled, as it will be served: the model, the analyzer and the answers at once."""

    model: ModelConfig = field(default_factory=ModelConfig)
    analyzer: str = "patterns"
    max_running: int = 16


def make_profile(
    config: ProfileConfig, out: Path, corpus: Corpus, limit: int, answer_tokens: int
) -> Profile:
    """Sweeps prompts through all variants, times these, and writes the profile's folder.

    An interrupted call goes on where it stopped, from a folder beside `out`. Raises
    `ProfilingError`, `SourceError`, `ArtefactError` or `ModelSourceError`.
    """
    check_folder(out, PROFILE)
    model = load_configured_model(config.model)
    if model.artefact is None or len(model.variants) == 1:
        raise ProfilingError(f"{model.name} has no variants to profile; see `trimtab build`")
    asked = read_prompts(corpus, model.tokenizer, limit)
    if len(asked) < _MIN_PROMPTS:
        raise ProfilingError(
            f"{corpus.name} has {len(asked)} usable prompts; {_MIN_PROMPTS} are needed"
        )
    origin = Origin(corpus.name, corpus_hash(corpus), limit, answer_tokens)
    weights = model.weights
    identity = [
        model.fingerprint, model.artefact.identity(), weights.precision, weights.device.type,
        [one.tokens for one in asked], answer_tokens,
    ]  # fmt: skip
    with Checkpoint(out.parent / f".{out.name}-profile", identity) as checkpoint:
        with progress_bars() as progress:
            swept = measure_losses(model, asked, answer_tokens, checkpoint, progress)
            prompts = _prompts(model, config, asked, swept)
            found = _timed(model, config, origin, prompts, progress)
        found.save(out)
    return found


def corpus_hash(corpus: Corpus) -> str:
    """Return the SHA-256 of all documents, whatever file they came from."""
    return hashlib.sha256(json.dumps(corpus.documents).encode()).hexdigest()


def check_profile(
    found: Profile,
    folder: Path,
    corpus: Corpus | None = None,
    model: str | None = None,
    artefact: Path | None = None,
) -> None:
    """Raise `ProfilingError` if a profile was made from something else than is asked for.

    What is None was not asked for.
    """
    origin = found.origin
    if corpus is not None and corpus_hash(corpus) != origin.sha256:
        raise ProfilingError(
            f"the profile {folder} was made from {origin.name} (SHA-256 {origin.sha256[:12]}), not "
            f"from this {corpus.name}: leave --prompts out, or name a folder for another profile"
        )
    if model is not None and model_name(model) != found.model:
        raise ProfilingError(
            f"the profile {folder} is of the model {found.model}: leave --model out, or name a "
            "folder for another profile"
        )
    if artefact is not None:
        fingerprint, variants = declared_variants(artefact)
        if (fingerprint, tuple(variants)) != (found.fingerprint, found.variants):
            raise ProfilingError(
                f"the profile {folder} is of other variants than {artefact}: leave --artefact out, "
                "or name a folder for another profile"
            )


def update_timing(config: ProfileConfig, out: Path) -> Profile:
    """Keeps what an existing profile knows of prompts, which no device changes, and times this one.

    Raises `ProfileError`, or `ProfilingError` if the variants are others by now.
    """
    known = load_profile(out)
    check_folder(out, PROFILE)
    model = load_configured_model(config.model)
    if model.artefact is None or known.artefact != model.artefact.identity():
        raise ProfilingError(f"{out} is of other variants; make it again with --prompts")
    with progress_bars() as progress:
        found = _timed(model, config, known.origin, known.prompts, progress)
    found.save(out)
    return found


def _timed(
    model: LoadedModel,
    config: ProfileConfig,
    origin: Origin,
    prompts: Prompts,
    progress: Progress,
) -> Profile:
    assert model.artefact is not None
    times, names = _times(model, progress), list(model.variants)
    fitted = fit_rates(
        [times["decode"][name] for name in names], [times["prefill"][name] for name in names]
    )
    factor = _overhead(model, config)
    return Profile(
        fingerprint=model.fingerprint,
        model=model.name,
        origin=origin,
        artefact=model.artefact.identity(),
        device=times["device"],
        machine=times["machine"],
        variants=tuple(names),
        prompts=prompts,
        rates=fitted.scaled(factor),
        bytes_read=_bytes_read(model.artefact, names),
        kv_loss={budget: one.kl for budget, one in model.artefact.table.kv_quality.items()},
        joules=_joules(model),
        measured={"decode": times["decode"], "prefill": times["prefill"], "serving": factor},
    )


def _times(model: LoadedModel, progress: Progress) -> dict[str, Any]:
    decode = [(rows, cached) for rows in _ROWS for cached in _CACHED]
    ((device, found),) = time_variants(
        model, _REPEATS, progress=progress, decode=decode, prompts=_PROMPTS
    ).items()
    return {"device": device, **found}


def _prompts(
    model: LoadedModel, config: ProfileConfig, asked: list[EncodedPrompt], swept: list[PromptLosses]
) -> Prompts:
    analyze = Analyzer(config.analyzer)
    features = [analyze(one.text) for one in asked]
    return Prompts(
        names=tuple(one.name for one in asked),
        tokens=np.array([len(one.tokens) for one in asked]),
        answer=np.array([one.answer for one in swept]),
        complexity=np.array([one.complexity for one in features], np.float32),
        predicted=_predicted(model, config, features),
        loss=np.array([one.kl for one in swept], np.float32),
        surprise=np.array([one.surprise for one in swept], np.float32),
    )


def _predicted(
    model: LoadedModel, config: ProfileConfig, features: list[PromptFeatures]
) -> np.ndarray:
    """`[prompts, variants]`, as the controller expects them."""
    predictor = open_sensitivity(model, config.model.artefact)
    known = build_catalogue(model, DEFAULT_KV_BUDGETS, predictor).variant_loss
    rows = []
    for one in features:
        ratio = {} if predictor is None else predictor.relative(one)
        expected = {BASE: 0.0, **known}
        rows.append([expected[name] * ratio.get(name, 1.0) for name in model.variants])
    return np.array(rows, np.float32)


def _bytes_read(artefact: Artefact, names: list[str]) -> tuple[float, ...]:
    cost = artefact.table.cost
    return tuple(1.0 if name == BASE else cost[name].bytes_read for name in names)


def _overhead(model: LoadedModel, config: ProfileConfig) -> float:
    """How much longer serving takes than the steps alone: scheduling, and making text of tokens."""
    count, prompt, output = 3 * config.max_running, 48, 48
    room = max(512, 2 * (prompt + output) * count)
    # Guessing ahead would depend on the text.
    engine = EngineConfig(config.max_running, kv_tokens=room, speculate=False)
    runner = build_runner(model, engine, free_bytes=None)
    vocab = model.weights.shape.vocab
    requests = [
        GenerationRequest(
            request_id=str(index),
            # No two begin alike, so that nothing is taken from the prefix cache.
            prompt=tuple((index + 31 * place) % vocab for place in range(prompt)),
            max_tokens=output,
            variant=model.variants[BASE],
            sampling=SamplingParams(temperature=0),
        )
        for index in range(2 * count)
    ]
    answer_all(runner, model.tokenizer, requests[:count])  # warms up
    steps: list[float] = []
    started = time.perf_counter()
    answer_all(
        runner, model.tokenizer, requests[count:], on_record=lambda one: steps.append(one.seconds)
    )
    return (time.perf_counter() - started) / sum(steps)


def _joules(model: LoadedModel) -> tuple[float, ...] | None:
    """Of one token of a single stream by each variant; None where no counter can be read."""
    meter = EnergyReader()
    if meter.read()["cpu_energy_joules"].value is None:
        return None
    decoder, found = zeroed_decoder(model, 256), []
    for spec in model.variants.values():
        step, steps = decode_step(decoder, spec, 1, 128), 0
        before, until = meter.read()["cpu_energy_joules"].value, time.monotonic() + 2.0
        while time.monotonic() < until:
            step()
            steps += STEPS
        after = meter.read()["cpu_energy_joules"].value
        if before is None or after is None:
            return None
        found.append((after - before) / steps)
    return tuple(found)
