"""The stages of learning: from an artefact to one with more in it. They run in the worker.

All text is the model's own: it is sampled from the base, some rows to fit on and other rows to
measure on. Nothing of any request is used.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

from pruners.architecture import LocatedModel, Shape, locate
from pruners.artefact.folder import Artefact, ArtefactError
from pruners.artefact.table import Table
from pruners.builder.pipeline import build
from pruners.builder.readers import fit_readers
from pruners.builder.recipe import DEFAULT_READERS, Recipe, make_readers
from pruners.builder.steps import BuildOptions, BuildRows
from pruners.evaluation.budget_quality import measure_budgets
from pruners.evaluation.pareto import pareto_front
from pruners.realization.order import identity_order
from pruners.support.checkpoint import Checkpoint
from pruners.variant import BASE
from server.engine.config import DEFAULT_KV_BUDGETS
from server.engine.loading.checkpoint import open_checkpoint
from server.engine.loading.load import load_outline, load_tokenizer, load_transformers
from server.engine.loading.source import cache_folder
from server.jobs.job_setup import SELF_GENERATED, TokenRows, checkpoint_folder
from server.jobs.readers import GivenText, ReadersRequest, make_reading_text
from server.jobs.self_generated_text import SelfGeneratedText
from server.learning.order import LearningPrecision

_FITTED = (16, 512, 700)
_HELD_OUT = (6, 896, 701)  # each row is two prompts with what follows them
_FITTED_WIDTHS = (32, 512, 702)
_BUDGETS = (4, 2 * max(DEFAULT_KV_BUDGETS), 703)
"""What text is for: rows, tokens of each, and the seed."""
_READER_TOKENS = 16_384
_SKIPPED = (1 / 30, 0.1, 0.2)
"""Shares of the layers that depth variants go without."""


@dataclass(frozen=True, slots=True)
class LearnedModel:
    """A model that is learned of: its folder, name and fingerprint, and in what it computes."""

    source: Path
    name: str
    fingerprint: str
    precision: LearningPrecision


class LearningJob:
    """What the stages share: the model's text and its weights, each made when it is needed.

    `target` is where the artefact is kept.
    """

    def __init__(self, model: LearnedModel, target: Path, progress: Progress) -> None:
        self.model = model
        self.target = target
        self.progress = progress

    @cached_property
    def located(self) -> LocatedModel:
        """The base. Raises `ArtefactError` if it is another model by now."""
        source, known = self.model.source, self.model.fingerprint
        found = open_checkpoint(source).fingerprint()
        if found != known:
            raise ArtefactError(f"{source} holds {found} by now, {known} is served")
        dtype = torch.float32 if self.model.precision == "fp32" else torch.bfloat16
        return locate(load_transformers(source, dtype))

    @cached_property
    def shape(self) -> Shape:
        """The sizes of the base, which is not loaded for them."""
        return locate(load_outline(self.model.source)).shape

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return load_tokenizer(self.model.source)

    def sample(self, *wanted: tuple[int, int, int]) -> list[TokenRows]:
        """Return what the base has written: for each so many rows, of so many tokens, by a seed.

        What serves the base for that is loaded once at most, and let go again.
        """
        identity = self.model.fingerprint
        kept = Checkpoint(cache_folder() / "text" / identity, identity)
        text = SelfGeneratedText(self.model.source, kept, self.progress)
        return [text.rows(*one) for one in wanted]

    def checkpoint(self, stage: str) -> Checkpoint:
        """Return where a stage notes what it has finished."""
        model = {"fingerprint": self.model.fingerprint, "precision": self.model.precision}
        identity = {**model, "stage": stage, "version": 1}
        return Checkpoint(checkpoint_folder(self.target, stage), identity)


def empty_artefact(job: LearningJob) -> Artefact:
    """Return an artefact of the base alone, in the order in which its units are."""
    shape = job.shape
    order = identity_order(shape)
    versions = {name: version(name) for name in ("torch", "transformers")}
    return Artefact(
        model_name=job.model.name,
        fingerprint=job.model.fingerprint,
        shape=shape,
        ffn_order=order.ffn.int(),
        kv_order=order.kv.int(),
        variants=(),
        table=Table(),
        provenance={"versions": versions},
    )


def _first_reader(job: LearningJob, artefact: Artefact, checkpoint: Checkpoint) -> Artefact:
    return _with_readers(job, artefact, checkpoint, 1)


def _all_readers(job: LearningJob, artefact: Artefact, checkpoint: Checkpoint) -> Artefact:
    return _with_readers(job, artefact, checkpoint, len(DEFAULT_READERS))


def _with_readers(
    job: LearningJob, artefact: Artefact, checkpoint: Checkpoint, count: int
) -> Artefact:
    """Return the artefact with the first `count` of the usual readers, in closed form."""
    usual = make_readers(DEFAULT_READERS, artefact.shape)
    wanted = {name: usual[name] for name in list(usual)[:count] if name not in artefact.readers}
    if not wanted:
        return artefact
    fitted, held_out = job.sample(_FITTED, _HELD_OUT)
    given = GivenText(fitted, held_out, SELF_GENERATED)
    request = ReadersRequest(tokens=_READER_TOKENS)
    text = make_reading_text(job.tokenizer, artefact.shape.vocab, given, request)
    made = fit_readers(job.located, wanted, text, checkpoint, job.progress)
    table = artefact.table
    return replace(
        artefact,
        readers={**artefact.readers, **made.readers},
        maps={**artefact.maps, **made.maps},
        table=replace(
            table,
            reader_quality={**table.reader_quality, **made.quality},
            reader_cost={**table.reader_cost, **made.cost},
        ),
        provenance={**artefact.provenance, **made.provenance()},
    )


def _budgets(job: LearningJob, artefact: Artefact, checkpoint: Checkpoint) -> Artefact:
    """Return the artefact with the losses of the usual KV budgets."""
    (rows,) = job.sample(_BUDGETS)
    measured = measure_budgets(job.located, rows, DEFAULT_KV_BUDGETS, job.progress, checkpoint)
    kept = {**artefact.table.kv_quality, **measured}
    return replace(artefact, table=replace(artefact.table, kv_quality=kept))


def skipped_layers(shape: Shape) -> tuple[int, ...]:
    """Return how many layers depth variants of a model go without, rising."""
    counts = {max(1, round(share * shape.layers)) for share in _SKIPPED}
    return tuple(sorted(count for count in counts if count < shape.layers))


def _depth(job: LearningJob, artefact: Artefact, checkpoint: Checkpoint) -> Artefact:
    """Return the artefact with variants of fewer layers. The order of units stays."""
    skipped = skipped_layers(artefact.shape)
    if not skipped:
        return artefact
    recipe = Recipe(
        skip_layers=skipped, shares=(), kv_budgets=(), readers=(), calibration_tokens=8_192
    )
    made = _build(job, recipe, _FITTED, checkpoint)
    # Blocks that are left out need no order, and what stands for them needs none.
    kept = replace(made, ffn_order=artefact.ffn_order, kv_order=artefact.kv_order)
    return _joined(artefact, kept, "depth")


def _widths(job: LearningJob, artefact: Artefact, checkpoint: Checkpoint) -> Artefact:
    """Return the artefact with narrower variants, and with the order that they need."""
    recipe = Recipe(kv_budgets=(), readers=())
    made = _build(job, recipe, _FITTED_WIDTHS, checkpoint)
    return _joined(artefact, made, "widths")


def _build(
    job: LearningJob, recipe: Recipe, text: tuple[int, int, int], checkpoint: Checkpoint
) -> Artefact:
    fitted, held_out = job.sample(text, _HELD_OUT)
    rows = BuildRows(fitted, held_out, SELF_GENERATED, f"{SELF_GENERATED}, other rows")
    return build(
        job.located.model, job.model.name, rows, recipe, BuildOptions(checkpoint, job.progress)
    )


def _joined(artefact: Artefact, made: Artefact, stage: str) -> Artefact:
    """Return `made` with the readers and the variants of `artefact`, as far as none beats them.

    The corrections of the variants of `artefact` must not depend on the order of units.
    """
    table = made.table
    quality, cost = (
        {**artefact.table.quality, **table.quality},
        {**artefact.table.cost, **table.cost},
    )
    points = {name: (cost[name].bytes_read, one.kl) for name, one in quality.items()}
    front = pareto_front({BASE: (1.0, 0.0), **points})
    names = [name for name in front if name != BASE]
    specs = {spec.name: spec for spec in (*artefact.variants, *made.variants)}
    corrections = {**artefact.corrections, **made.corrections}
    return replace(
        artefact,
        ffn_order=made.ffn_order,
        kv_order=made.kv_order,
        variants=tuple(specs[name] for name in names),
        corrections={name: corrections[name] for name in names if name in corrections},
        table=replace(
            artefact.table,
            evaluation=table.evaluation,
            quality={name: quality[name] for name in names},
            cost={name: cost[name] for name in (BASE, *names)},
        ),
        provenance={**artefact.provenance, stage: _told(made.provenance)},
    )


def _told(provenance: Mapping[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in provenance.items() if name != "versions"}


RUN: Mapping[str, Callable[[LearningJob, Artefact, Checkpoint], Artefact]] = {
    "reading": _first_reader,
    "budgets": _budgets,
    "readers": _all_readers,
    "depth": _depth,
    "widths": _widths,
}
"""What each stage of `plan.STAGES` does."""
