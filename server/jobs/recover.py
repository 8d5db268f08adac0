"""`trimtab recover`: trains variants of an artefact on text that the base itself writes."""

from collections.abc import Mapping, Sequence
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
from pruners.evaluation.cost import compute_cost
from pruners.evaluation.evaluate import Evaluation, evaluate, masked_variants
from pruners.evaluation.pareto import pareto_front
from pruners.realization.variant_set import VariantSet
from pruners.support.checkpoint import CHECKPOINT, Checkpoint
from pruners.support.errors import UserError
from pruners.support.files import check_folder
from pruners.support.fingerprint import fingerprint
from pruners.support.progress import progress_bars
from pruners.variant import BASE, VariantSpec, base_spec
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import cache_folder, resolve_model
from server.jobs.build import SELF, Rows
from server.jobs.self_generated_text import SelfGeneratedText

_ROW = 512
_HELD_OUT_ROWS, _HELD_OUT_SEED = 8, 5  # which state is kept
_MEASURED_ROWS, _MEASURED_ROW, _MEASURED_SEED = 8, 1024, 2  # what the table says; as `evaluate`


class RecoverError(UserError):
    """The request does not fit the artefact. One clear line."""


@dataclass(frozen=True, slots=True)
class RecoveryRequest:
    """What to train: `variants` by name (none: all), on about `tokens` of text.

    `corpus` is trained on beside the base's own text, half and half. `device` computes in
    `fast_dtype` of it.
    """

    variants: tuple[str, ...] = ()
    tokens: int = 200_000
    corpus: Corpus | None = None
    training: TrainingOptions = field(default_factory=TrainingOptions)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def recover_artefact(model: str, folder: Path, out: Path, request: RecoveryRequest) -> Artefact:
    """Trains what `request` asks for and writes the artefact with better corrections to `out`.

    All variants are measured anew on fresh text of the base; those that were not trained and that
    another beats in bytes and loss are left out. An interrupted call goes on from its last check,
    from a folder beside `out`. Raises `TargetError`, `ArtefactError`, `RecoverError`,
    `RecoveryError`, `SourceError` or `UnsupportedModelError`.
    """
    kept = out.parent / f".{out.name}-recover"
    check_folder(out, ARTEFACT)
    check_folder(kept, CHECKPOINT)
    if request.tokens < request.training.batch_tokens:
        raise RecoverError(
            f"{request.tokens} tokens are less than a batch of {request.training.batch_tokens}"
        )
    artefact = load_artefact(folder)
    specs = _chosen(artefact, request.variants)
    source = resolve_model(model)
    base = load_transformers(source, torch.float32)
    artefact.check_base(fingerprint(base))
    located = locate(base)
    identity = {
        "artefact": artefact.identity(),
        "variants": [spec.name for spec in specs],
        "request": [request.tokens, asdict(request.training), str(request.device)],
        "dtype": str(fast_dtype(request.device)),
    }
    with progress_bars() as progress:
        rows, held_out, measured, what = _text(source, artefact, request, progress)
        with Checkpoint(kept, {**identity, "text": what}) as checkpoint:
            dtype = fast_dtype(request.device)
            base.to(device=request.device, dtype=dtype)
            trained = train(
                located, VariantSet(artefact.order, specs, artefact.corrections),
                TrainingRows(rows, held_out), request.training,
                checkpoint.file_path("state.safetensors"), progress,
            )  # fmt: skip
            if request.device.type != "cpu" or dtype != torch.float32:  # measured as it was before
                located = locate(load_transformers(source, torch.float32))
            corrections = artefact.corrections | {n: t.corrections for n, t in trained.items()}
            better = replace(artefact, corrections={n: c for n, c in corrections.items() if c})
            readers = masked_variants(
                located, VariantSet(better.order, better.variants, better.corrections)
            )
            found = evaluate(located, readers, measured, progress=progress, checkpoint=checkpoint)
            better = _with_results(better, located, found, measured, what, request, trained)
            better.save(out)
    return better


def _chosen(artefact: Artefact, names: Sequence[str]) -> list[VariantSpec]:
    known = {spec.name: spec for spec in artefact.variants}
    for name in names:
        if name not in known:
            raise RecoverError(f"the artefact has no variant '{name}'; it has {', '.join(known)}")
    return [known[name] for name in names] or list(known.values())


def _text(
    source: Path, artefact: Artefact, request: RecoveryRequest, progress: Progress
) -> tuple[Rows, Rows, Rows, dict[str, Any]]:
    """Rows to train on, to choose by and to measure on, and what the first are."""
    # Kept: the next training of this model reads the same text.
    checkpoint = Checkpoint(cache_folder() / "text" / artefact.fingerprint, artefact.fingerprint)
    own = SelfGeneratedText(source, checkpoint, progress)
    corpus = request.corpus
    wanted = request.tokens if corpus is None else request.tokens // 2
    seed = request.training.seed
    rows = own.rows(-(-wanted // _ROW), _ROW, 100 + seed)
    what: dict[str, Any] = {"source": SELF}
    if corpus is not None:
        rows += corpus.rows(load_tokenizer(source), _ROW, request.tokens - wanted)
        what = {"source": f"{SELF}, and {corpus.name}"}
    what |= {"rows": len(rows), "tokens": count_tokens(rows), "hash": hash_rows(rows)}
    held_out = own.rows(_HELD_OUT_ROWS, _ROW, _HELD_OUT_SEED)
    measured = own.rows(_MEASURED_ROWS, _MEASURED_ROW, _MEASURED_SEED)
    return rows, held_out, measured, what


def _with_results(
    artefact: Artefact,
    located: LocatedModel,
    found: Evaluation,
    measured: Rows,
    what: Mapping[str, Any],
    request: RecoveryRequest,
    trained: Mapping[str, TrainingResult],
) -> Artefact:
    table = artefact.table
    cost = {
        spec.name: compute_cost(spec, artefact.corrections.get(spec.name, {}), located)
        for spec in (base_spec(located.shape), *artefact.variants)
    }
    points = {BASE: (cost[BASE].bytes_read, 0.0)}
    points |= {name: (cost[name].bytes_read, one.kl) for name, one in found.quality.items()}
    kept = {BASE, *trained, *pareto_front(points)}
    done = {
        name: {
            "tier": request.training.tier,
            "rank": None if request.training.tier == "norms" else request.training.rank,
            "text": dict(what),
            "held_out_kl": [round(kl, 5) for kl in one.history],
        }
        for name, one in trained.items()
    }
    return replace(
        artefact,
        variants=tuple(spec for spec in artefact.variants if spec.name in kept),
        corrections={n: own for n, own in artefact.corrections.items() if n in kept},
        table=replace(
            table,
            evaluation=found.describe(measured, f"{SELF}, other rows"),
            quality={name: one for name, one in found.quality.items() if name in kept},
            cost={name: one for name, one in cost.items() if name in kept},
            tasks={},  # of the corrections before; `trimtab evaluate` fills them again
            speed={},
            samples={},
        ),
        provenance={
            **artefact.provenance,
            "training": {**artefact.provenance.get("training", {}), **done},
        },
    )
