"""`trimtab profile`: what every variant loses on real prompts, and what it takes on this device."""

import hashlib
import json
import time
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
from server.app import build_runner, catalogue, load, sensitivity
from server.engine.loading.load import LoadedModel
from server.engine.loading.source import model_name
from server.engine.offline import answer_all
from server.engine.sampling import SamplingParams
from server.engine.sequence import GenerationRequest
from server.jobs.prompt_losses import Asked, Swept, read_prompts, sweep
from server.jobs.step_timing import STEPS, decode_step, time_variants, zeroed_decoder
from server.prechecks import declared
from server.settings import JobSettings
from telemetry.energy import EnergyReader

_ROWS = (1, 2, 4, 8, 16)
_CACHED = (128, 768)
_PROMPTS = (32, 128, 256)
_REPEATS = 15
_LEAST = 40


class ProfilingError(UserError):
    """Nothing to profile. One clear line."""


def make_profile(
    settings: JobSettings, out: Path, corpus: Corpus, limit: int, answer_tokens: int
) -> Profile:
    """Sweeps prompts through all variants, times these, and writes the profile's folder.

    An interrupted call goes on where it stopped, from a folder beside `out`. Raises
    `ProfilingError`, `SourceError`, `ArtefactError` or `ModelSourceError`.
    """
    check_folder(out, PROFILE)
    model = load(settings)
    if model.artefact is None or len(model.variants) == 1:
        raise ProfilingError(f"{model.name} has no variants to profile; see `trimtab build`")
    asked = read_prompts(corpus, model.tokenizer, limit)
    if len(asked) < _LEAST:
        raise ProfilingError(f"{corpus.name} has {len(asked)} usable prompts; {_LEAST} are needed")
    origin = Origin(corpus.name, corpus_hash(corpus), limit, answer_tokens)
    weights = model.weights
    identity = [
        model.fingerprint, model.artefact.identity(), weights.precision, weights.device.type,
        [one.tokens for one in asked], answer_tokens,
    ]  # fmt: skip
    with Checkpoint(out.parent / f".{out.name}-profile", identity) as checkpoint:
        with progress_bars() as progress:
            swept = sweep(model, asked, answer_tokens, checkpoint, progress)
            prompts = _prompts(model, settings, asked, swept)
            found = _timed(model, settings, origin, prompts, progress)
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
        fingerprint, variants = declared(artefact)
        if (fingerprint, tuple(variants)) != (found.fingerprint, found.variants):
            raise ProfilingError(
                f"the profile {folder} is of other variants than {artefact}: leave --artefact out, "
                "or name a folder for another profile"
            )


def time_again(settings: JobSettings, out: Path) -> Profile:
    """Keeps what an existing profile knows of prompts, which no device changes, and times this one.

    Raises `ProfileError`, or `ProfilingError` if the variants are others by now.
    """
    known = load_profile(out)
    check_folder(out, PROFILE)
    model = load(settings)
    if model.artefact is None or known.artefact != model.artefact.identity():
        raise ProfilingError(f"{out} is of other variants; make it again with --prompts")
    with progress_bars() as progress:
        found = _timed(model, settings, known.origin, known.prompts, progress)
    found.save(out)
    return found


def _timed(
    model: LoadedModel,
    settings: JobSettings,
    origin: Origin,
    prompts: Prompts,
    progress: Progress,
) -> Profile:
    assert model.artefact is not None
    times, names = _times(model, progress), list(model.variants)
    fitted = fit_rates(
        [times["decode"][name] for name in names], [times["prefill"][name] for name in names]
    )
    factor = _overhead(model, settings)
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
        kv_loss=dict(catalogue(model, settings).kv_loss),
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
    model: LoadedModel, settings: JobSettings, asked: list[Asked], swept: list[Swept]
) -> Prompts:
    analyze = Analyzer(settings.analyzer)
    features = [analyze(one.text) for one in asked]
    return Prompts(
        names=tuple(one.name for one in asked),
        tokens=np.array([len(one.tokens) for one in asked]),
        answer=np.array([one.answer for one in swept]),
        complexity=np.array([one.complexity for one in features], np.float32),
        predicted=_predicted(model, settings, features),
        loss=np.array([one.kl for one in swept], np.float32),
        surprise=np.array([one.surprise for one in swept], np.float32),
    )


def _predicted(
    model: LoadedModel, settings: JobSettings, features: list[PromptFeatures]
) -> np.ndarray:
    """`[prompts, variants]`, as the controller expects them."""
    known, predictor = catalogue(model, settings).variant_loss, sensitivity(model, settings)
    rows = []
    for one in features:
        ratio = {} if predictor is None else predictor.relative(one)
        expected = {BASE: 0.0, **known}
        rows.append([expected[name] * ratio.get(name, 1.0) for name in model.variants])
    return np.array(rows, np.float32)


def _bytes_read(artefact: Artefact, names: list[str]) -> tuple[float, ...]:
    cost = artefact.table.cost
    return tuple(1.0 if name == BASE else cost[name].touched for name in names)


def _overhead(model: LoadedModel, settings: JobSettings) -> float:
    """How much longer serving takes than the steps alone: scheduling, and making text of tokens."""
    count, prompt, output = 3 * settings.max_running, 48, 48
    runner = build_runner(
        model, _without_guesses(settings, (prompt + output) * count), free_bytes=None
    )
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
        runner, model.tokenizer, requests[count:], step_done=lambda one: steps.append(one.seconds)
    )
    return (time.perf_counter() - started) / sum(steps)


def _without_guesses(settings: JobSettings, kv_tokens: int) -> JobSettings:
    """The same without guessing ahead, which depends on the text."""
    return settings.model_copy(update={"speculate": False, "kv_tokens": max(512, 2 * kv_tokens)})


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
