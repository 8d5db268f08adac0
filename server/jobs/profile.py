"""`trimtab profile`: measures each variant's loss on real prompts, and times on this device.

What readers lose is known from the artefact's table; how long they take is measured.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from controller import Catalogue
from controller.analyzer import Analyzer, PromptFeatures
from policies.simulation.profile import PROFILE, Origin, Profile, Prompts, load_profile
from policies.simulation.rates import fit_rates
from policies.simulation.reader_profile import ReaderProfile
from pruners.artefact.folder import Artefact
from pruners.data.corpus import Corpus
from pruners.support.checkpoint import Checkpoint
from pruners.support.errors import UserError
from pruners.support.files import check_folder
from pruners.support.progress import progress_bars
from pruners.variant import BASE
from server.catalogue import build_catalogue, open_sensitivity
from server.engine.config import DEFAULT_KV_BUDGETS, ModelConfig
from server.engine.loading.artefact_lookup import declared_variants
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.engine.loading.source import model_name
from server.jobs.job_setup import checkpoint_folder
from server.jobs.profile_timing import measure_joules, measure_overhead, measure_times
from server.jobs.prompt_losses import (
    MIN_PROMPTS,
    EncodedPrompt,
    PromptLosses,
    measure_losses,
    read_prompts,
)
from server.jobs.reader_timing import time_readers


class ProfilingError(UserError):
    """There is nothing to profile, or a profile is of something else. The message is one line."""


@dataclass(frozen=True, slots=True)
class ProfileConfig:
    """How the profiled model will be served: analyzer, and answers written at the same time."""

    model: ModelConfig = field(default_factory=ModelConfig)
    analyzer: str = "patterns"
    max_running: int = 16


def make_profile(
    config: ProfileConfig, out: Path, corpus: Corpus, limit: int, answer_tokens: int
) -> Profile:
    """Measure all variants on prompts and on this device, and write the folder of the profile.

    An interrupted call goes on where it stopped, from a folder beside `out`. Raises
    `ProfilingError`, `AnalyzerError`, `TooFewPromptsError`, `SourceError`, `ArtefactError` or
    `ModelSourceError`.
    """
    check_folder(out, PROFILE)
    analyze = Analyzer(config.analyzer)
    model = load_configured_model(config.model)
    if model.artefact is None or len(model.variants) == 1:
        raise ProfilingError(f"{model.name} has no variants to profile; see `trimtab build`")
    _check_readers(model)
    prompts = read_prompts(corpus, model.tokenizer, limit, MIN_PROMPTS)
    origin = Origin(corpus.name, corpus_hash(corpus), limit, answer_tokens)
    weights = model.weights
    identity = [
        model.fingerprint, model.artefact.identity(), weights.precision, weights.device.type,
        [prompt.tokens for prompt in prompts], answer_tokens,
    ]  # fmt: skip
    with Checkpoint(checkpoint_folder(out, "profile"), identity) as checkpoint:
        with progress_bars() as progress:
            losses = measure_losses(model, prompts, answer_tokens, checkpoint, progress)
            features = [analyze(prompt.text) for prompt in prompts]
            predicted = _predicted_losses(model, features)
            known = _describe_prompts(prompts, losses, features, predicted)
            profile = _with_timing(model, config, origin, known, progress)
        profile.save(out)
    return profile


def update_timing(config: ProfileConfig, out: Path) -> Profile:
    """Measure the times of an existing profile again, on this device, and keep its losses.

    Raises `ProfileError`, or `ProfilingError` if the variants have changed.
    """
    before = load_profile(out)
    check_folder(out, PROFILE)
    model = load_configured_model(config.model)
    if model.artefact is None or before.artefact != model.artefact.identity():
        raise ProfilingError(f"{out} is of other variants; make it again with --prompts")
    _check_readers(model)
    with progress_bars() as progress:
        profile = _with_timing(model, config, before.origin, before.prompts, progress)
    profile.save(out)
    return profile


def corpus_hash(corpus: Corpus) -> str:
    """Return the SHA-256 of all documents, whatever file they came from."""
    return hashlib.sha256(json.dumps(corpus.documents).encode()).hexdigest()


def check_profile(
    profile: Profile,
    folder: Path,
    corpus: Corpus | None = None,
    model: str | None = None,
    artefact: Path | None = None,
) -> None:
    """Raise `ProfilingError` if the profile was made from something else than is asked for.

    None stands for anything.
    """
    origin = profile.origin
    if corpus is not None and corpus_hash(corpus) != origin.sha256:
        raise ProfilingError(
            f"the profile {folder} was made from {origin.name} (SHA-256 {origin.sha256[:12]}), not "
            f"from this {corpus.name}: leave --prompts out, or name a folder for another profile"
        )
    if model is not None and model_name(model) != profile.model:
        raise ProfilingError(
            f"the profile {folder} is of the model {profile.model}: leave --model out, or name a "
            "folder for another profile"
        )
    if artefact is not None:
        fingerprint, variants = declared_variants(artefact)
        if (fingerprint, tuple(variants)) != (profile.fingerprint, profile.variants):
            raise ProfilingError(
                f"the profile {folder} is of other variants than {artefact}: leave --artefact out, "
                "or name a folder for another profile"
            )


def _with_timing(
    model: LoadedModel,
    config: ProfileConfig,
    origin: Origin,
    prompts: Prompts,
    progress: Progress,
) -> Profile:
    """Return a profile of these prompts with times that are measured now."""
    assert model.artefact is not None
    times, names = measure_times(model, progress), list(model.variants)
    decode, prefill = ([times[kind][name] for name in names] for kind in ("decode", "prefill"))
    overhead = measure_overhead(model, config.max_running)
    readers = time_readers(model, progress=progress)
    catalogue = build_catalogue(model, DEFAULT_KV_BUDGETS, None)
    return Profile(
        fingerprint=model.fingerprint,
        model=model.name,
        origin=origin,
        artefact=model.artefact.identity(),
        device=times["device"],
        machine=times["machine"],
        variants=tuple(names),
        prompts=prompts,
        rates=fit_rates(decode, prefill).scaled(overhead),
        bytes_read=_bytes_read(model.artefact, names),
        kv_loss={budget: one.kl for budget, one in model.artefact.table.kv_quality.items()},
        joules=measure_joules(model),
        measured={"decode": times["decode"], "prefill": times["prefill"], "serving": overhead},
        readers=tuple(_profile_reader(catalogue, model, name, readers[name]) for name in readers),
        pairs=catalogue.pairs,
        keep_tasks=tuple(sorted(catalogue.keep_tasks)),
    )


def _check_readers(model: LoadedModel) -> None:
    """Raise `ProfilingError` for a reader whose loss nobody measured."""
    for name, served in build_catalogue(model, (), None).readers.items():
        if served.loss is None and not served.by_length:
            raise ProfilingError(
                f"the loss of reader {name} was never measured; see `trimtab readers`"
            )


def _profile_reader(
    catalogue: Catalogue, model: LoadedModel, name: str, seconds: dict[int, float]
) -> ReaderProfile:
    """Return what the artefact's table says of a reader, beside its times on this device."""
    assert model.artefact is not None
    served, tasks = catalogue.readers[name], model.artefact.table.reading_tasks
    loss = dict(served.by_length)
    if served.loss is not None:
        loss = loss or {1: served.loss}
    found = {task: by_name[name].acc for task, by_name in tasks.items() if name in by_name}
    return ReaderProfile(name, seconds, loss, found)


def _describe_prompts(
    prompts: list[EncodedPrompt],
    losses: list[PromptLosses],
    features: list[PromptFeatures],
    predicted: np.ndarray,
) -> Prompts:
    return Prompts(
        names=tuple(prompt.name for prompt in prompts),
        tokens=np.array([len(prompt.tokens) for prompt in prompts]),
        answer=np.array([one.answer for one in losses]),
        complexity=np.array([one.complexity for one in features], np.float32),
        predicted=predicted,
        loss=np.array([one.kl for one in losses], np.float32),
        surprise=np.array([one.nll for one in losses], np.float32),
    )


def _predicted_losses(model: LoadedModel, features: list[PromptFeatures]) -> np.ndarray:
    """Return the losses that the controller would predict, `[prompts, variants]`."""
    predictor = open_sensitivity(model)
    catalogue = build_catalogue(model, DEFAULT_KV_BUDGETS, predictor)
    mean_loss = {BASE: 0.0, **catalogue.variant_loss}
    rows = []
    for one in features:
        relative = {} if predictor is None else predictor.relative(one)
        rows.append([mean_loss[name] * relative.get(name, 1.0) for name in model.variants])
    return np.array(rows, np.float32)


def _bytes_read(artefact: Artefact, names: list[str]) -> tuple[float, ...]:
    """Return the share of the base's bytes that a token of each variant reads."""
    cost = artefact.table.cost
    return tuple(1.0 if name == BASE else cost[name].bytes_read for name in names)
