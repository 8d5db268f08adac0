"""`trimtab recover`: trains the corrections of variants on text that the base itself writes."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel, locate
from pruners.artefact.folder import ARTEFACT, Artefact, load_artefact
from pruners.data.corpus import Corpus
from pruners.data.rows import count_tokens, hash_rows
from pruners.distill import TrainingOptions, TrainingResult, TrainingRows, fast_dtype, train
from pruners.evaluation.evaluate import evaluate, masked_variants
from pruners.evaluation.pareto import pareto_front
from pruners.realization.variant_set import VariantSet
from pruners.support.checkpoint import CHECKPOINT, Checkpoint
from pruners.support.errors import UserError
from pruners.support.files import check_folder
from pruners.support.progress import progress_bars
from pruners.variant import BASE
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import cache_folder, resolve_model
from server.jobs.job_setup import (
    SELF_GENERATED,
    TokenRows,
    checkpoint_folder,
    compute_costs,
    find_variants,
    load_base,
)
from server.jobs.self_generated_text import SelfGeneratedText

_ROW_TOKENS = 512
_HELD_OUT_ROWS, _HELD_OUT_SEED = 8, 5  # they decide which state of a training is kept
_MEASURED_ROWS, _MEASURED_ROW_TOKENS, _MEASURED_SEED = 8, 1024, 2  # as `trimtab evaluate` has them


class RecoverError(UserError):
    """The request cannot be trained. The message is one line."""


@dataclass(frozen=True, slots=True)
class RecoveryRequest:
    """What to train: `variants` by name (none: all), on about `tokens` of text.

    Half of the text is of `corpus`, if there is one; the rest is written by the base. `device`
    computes in the type that `fast_dtype` names for it.
    """

    variants: tuple[str, ...] = ()
    tokens: int = 200_000
    corpus: Corpus | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class _RecoveryText:
    """Rows to train on, to choose a state by and to measure on, and what the first are."""

    training: TokenRows
    held_out: TokenRows
    measured: TokenRows
    description: dict[str, Any]


def recover_artefact(model: str, folder: Path, out: Path, request: RecoveryRequest) -> Artefact:
    """Train what `request` asks for, and write the artefact with its new corrections to `out`.

    All variants are measured again on fresh text of the base. Variants that were not trained, cost
    more and lose more than another are left out. An interrupted call goes on from its last check,
    from a folder beside `out`. Raises `TargetError`, `ArtefactError`, `RecoverError`,
    `RecoveryError`, `SourceError` or `UnsupportedModelError`.
    """
    unfinished = checkpoint_folder(out, "recover")
    check_folder(out, ARTEFACT)
    check_folder(unfinished, CHECKPOINT)
    if request.tokens < request.training.batch_tokens:
        raise RecoverError(
            f"{request.tokens} tokens are less than a batch of {request.training.batch_tokens}"
        )
    artefact = load_artefact(folder)
    specs = find_variants(artefact, request.variants) or list(artefact.variants)
    source = resolve_model(model)
    located = load_base(source, artefact)
    identity = {
        "artefact": artefact.identity(),
        "variants": [spec.name for spec in specs],
        "request": [request.tokens, asdict(request.training), str(request.device)],
        "dtype": str(fast_dtype(request.device)),
    }
    with progress_bars() as progress:
        text = _recovery_text(source, artefact, request, progress)
        with Checkpoint(unfinished, {**identity, "text": text.description}) as checkpoint:
            variants = VariantSet(artefact.order, specs, artefact.corrections)
            trained = _train(located, variants, text, request, checkpoint, progress)
            if request.device.type != "cpu" or fast_dtype(request.device) != torch.float32:
                located = locate(load_transformers(source, torch.float32))
            recovered = _with_corrections(artefact, trained, text, request)
            recovered = _with_measurements(recovered, located, text, checkpoint, progress)
            recovered = _without_dominated(recovered, trained)
            recovered.save(out)
    return recovered


def _train(
    located: LocatedModel,
    variants: VariantSet,
    text: _RecoveryText,
    request: RecoveryRequest,
    checkpoint: Checkpoint,
    progress: Progress,
) -> dict[str, TrainingResult]:
    """Move the base to the device of the request, in its fast type, and train there."""
    located.model.to(device=request.device, dtype=fast_dtype(request.device))
    return train(
        located,
        variants,
        TrainingRows(text.training, text.held_out),
        request.training,
        checkpoint.file_path("state.safetensors"),
        progress,
    )


def _recovery_text(
    source: Path, artefact: Artefact, request: RecoveryRequest, progress: Progress
) -> _RecoveryText:
    # This checkpoint stays: the next training of this model reads the same text.
    checkpoint = Checkpoint(cache_folder() / "text" / artefact.fingerprint, artefact.fingerprint)
    generated = SelfGeneratedText(source, checkpoint, progress)
    corpus = request.corpus
    tokens = request.tokens if corpus is None else request.tokens // 2
    training = generated.rows(-(-tokens // _ROW_TOKENS), _ROW_TOKENS, 100 + request.training.seed)
    name = SELF_GENERATED
    if corpus is not None:
        training += corpus.rows(load_tokenizer(source), _ROW_TOKENS, request.tokens - tokens)
        name = f"{SELF_GENERATED}, and {corpus.name}"
    description = {
        "source": name,
        "rows": len(training),
        "tokens": count_tokens(training),
        "hash": hash_rows(training),
    }
    held_out = generated.rows(_HELD_OUT_ROWS, _ROW_TOKENS, _HELD_OUT_SEED)
    measured = generated.rows(_MEASURED_ROWS, _MEASURED_ROW_TOKENS, _MEASURED_SEED)
    return _RecoveryText(training, held_out, measured, description)


def _with_corrections(
    artefact: Artefact,
    trained: Mapping[str, TrainingResult],
    text: _RecoveryText,
    request: RecoveryRequest,
) -> Artefact:
    """Return the artefact with the trained corrections and a record of their training."""
    corrections = artefact.corrections | {name: one.corrections for name, one in trained.items()}
    tier = request.training.tier
    records = {
        name: {
            "tier": tier,
            "rank": None if tier == "norms" else request.training.rank,
            "text": dict(text.description),
            "held_out_kl": [round(kl, 5) for kl in result.history],
        }
        for name, result in trained.items()
    }
    before = artefact.provenance.get("training", {})
    return replace(
        artefact,
        corrections={name: parts for name, parts in corrections.items() if parts},
        provenance={**artefact.provenance, "training": {**before, **records}},
    )


def _with_measurements(
    artefact: Artefact,
    located: LocatedModel,
    text: _RecoveryText,
    checkpoint: Checkpoint,
    progress: Progress,
) -> Artefact:
    """Return the artefact with a new table of quality and cost, in fp32 on the CPU."""
    variants = VariantSet(artefact.order, artefact.variants, artefact.corrections)
    evaluation = evaluate(
        located, masked_variants(located, variants), text.measured, progress=progress,
        checkpoint=checkpoint,
    )  # fmt: skip
    table = replace(
        artefact.table,
        evaluation=evaluation.describe(text.measured, f"{SELF_GENERATED}, other rows"),
        quality=evaluation.quality,
        cost=compute_costs(located, artefact.variants, artefact.corrections),
        tasks={},  # they were of the corrections before; `trimtab evaluate` measures them again
        speed={},
        samples={},
        reading_tasks={},
    )
    return replace(artefact, table=table)


def _without_dominated(artefact: Artefact, trained: Mapping[str, TrainingResult]) -> Artefact:
    """Leave out variants that another beats in bytes and loss, unless they were trained."""
    table = artefact.table
    points = {BASE: (table.cost[BASE].bytes_read, 0.0)}
    points |= {
        name: (table.cost[name].bytes_read, quality.kl) for name, quality in table.quality.items()
    }
    names = {BASE, *trained, *pareto_front(points)}
    return replace(
        artefact,
        variants=tuple(spec for spec in artefact.variants if spec.name in names),
        corrections={name: own for name, own in artefact.corrections.items() if name in names},
        table=replace(
            table,
            quality={name: one for name, one in table.quality.items() if name in names},
            cost={name: one for name, one in table.cost.items() if name in names},
        ),
    )
