"""`trimtab sensitivity`: learns from real prompts what each variant will lose on a prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from controller.analyzer import BACKENDS, Analyzer, AnalyzerError, PromptFeatures
from controller.cross_validation import cross_validate
from controller.sensitivity import FILE, Sensitivity, fit
from pruners.artefact.folder import load_artefact
from pruners.data.corpus import Corpus
from pruners.support.checkpoint import Checkpoint
from pruners.support.files import check_file
from pruners.support.progress import progress_bars
from pruners.variant import BASE
from server.engine.loading.load import load_model
from server.engine.loading.source import resolve_model
from server.jobs.job_setup import checkpoint_folder
from server.jobs.prompt_losses import (
    MIN_PROMPTS,
    EncodedPrompt,
    PromptLosses,
    measure_losses,
    read_prompts,
)


def learn_sensitivity(
    model: str, folder: Path, corpus: Corpus, limit: int, answer_tokens: int, analyzer: str
) -> Sensitivity:
    """Fit a predictor of loss to `limit` prompts, and write it into the artefact's folder.

    The base answers each prompt at temperature 1; a variant's loss is its KL to the base over the
    answer. The predictor uses the features that `analyzer` sees; its report covers all installed
    backends. An interrupted call goes on where it stopped. Raises `TooFewPromptsError`,
    `AnalyzerError`, `SourceError`, `ArtefactError` or `ModelSourceError`.
    """
    Analyzer(analyzer)  # so that a missing package is noticed before the work
    artefact = load_artefact(folder)
    check_file(folder / FILE)
    loaded = load_model(resolve_model(model), artefact.model_name, artefact=artefact)
    prompts = read_prompts(corpus, loaded.tokenizer, limit, MIN_PROMPTS)
    identity = [artefact.identity(), [prompt.tokens for prompt in prompts], answer_tokens]
    with Checkpoint(checkpoint_folder(folder, "sensitivity"), identity) as checkpoint:
        with progress_bars() as progress:
            measured = measure_losses(loaded, prompts, answer_tokens, checkpoint, progress)
        losses = {
            name: [one.kl[index] for one in measured]
            for index, name in enumerate(loaded.variants)
            if name != BASE
        }
        features = _features(prompts)
        fitted = fit(features[analyzer], losses, artefact.fingerprint, analyzer)
        report = {
            "prompts": corpus.name, "count": len(prompts), "answer_tokens": answer_tokens,
            "backends": _cross_validation(features, losses, measured),
        }  # fmt: skip
        sensitivity = replace(fitted, report=report)
        sensitivity.save(folder)
    return sensitivity


def _features(prompts: Sequence[EncodedPrompt]) -> dict[str, list[PromptFeatures]]:
    """Return the features of all prompts by each backend of the analyzer that is installed."""
    features = {}
    for backend in reversed(BACKENDS):
        try:
            analyze = Analyzer(backend)
        except AnalyzerError:
            continue
        features[backend] = [analyze(prompt.text) for prompt in prompts]
    return features


def _cross_validation(
    features: Mapping[str, list[PromptFeatures]],
    losses: Mapping[str, list[float]],
    measured: Sequence[PromptLosses],
) -> dict[str, Any]:
    prompt_losses = [one.prompt for one in measured]
    return {
        backend: cross_validate(values, dict(losses), prompt_losses)
        for backend, values in features.items()
    }
