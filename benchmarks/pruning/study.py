"""The base with its calibration, and the cuts of it that `benchmarks.pruning` compares."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from rich.progress import Progress

from pruners.allocation import (
    AllocationProblem,
    Curve,
    SearchOptions,
    ffn_levels,
    kv_levels,
    search_widths,
)
from pruners.architecture import LocatedModel
from pruners.data.rows import held_out_rows, sample_rows
from pruners.evaluation.evaluate import VariantForward, evaluate, variant_forward
from pruners.importance import make_scorer
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.recovery.library import CorrectionLibrary, fit_library
from pruners.support.checkpoint import Checkpoint
from pruners.variant import Block, Part, VariantSpec, base_spec

BASELINES = ("random", "l2", "mean-activation", "wanda", "flap")
ORDER = "wanda"
"""What our own cuts rank units by."""
LAYERS = 6
ROW = 1024
TRIALS = 12
"""Candidates for the widths of each share of neurons, plain greedy among them."""


class Study:
    """The base, its calibration rows, and the cuts that are compared.

    `cuts` maps each name to the cut model, ready to be evaluated; `shares` maps it to its
    parameters over the base's. What takes long is computed once and kept in `checkpoint`.
    """

    def __init__(
        self, located: LocatedModel, rows: list[torch.Tensor], checkpoint: Checkpoint
    ) -> None:
        self.located = located
        self.rows = rows
        self.checkpoint = checkpoint
        self.selection = sample_rows(held_out_rows(rows), 2048, seed=1)
        self.scored = sample_rows(rows, 8192, seed=2)
        self.cuts: dict[str, VariantForward] = {}
        self.shares: dict[str, float] = {}

    def add(
        self, name: str, spec: VariantSpec, order: Order, own: Mapping[Block, Any] | None = None
    ) -> None:
        """Add a cut under `name`; `own` holds its corrections, if it has any."""
        shape = self.located.shape
        corrections = sum(t.numel() for c in (own or {}).values() for t in c.tensors())
        parameters = spec.parameters(shape) + corrections
        self.shares[name] = parameters / base_spec(shape).parameters(shape)
        self.cuts[name] = variant_forward(
            self.located, partial(apply_mask, self.located, spec, order, own)
        )

    def order(self, name: str, progress: Progress) -> Order:
        """Return the order of units by this scorer, computed once."""

        def compute() -> dict[str, torch.Tensor]:
            rows = self.rows if name == ORDER else self.scored
            found = make_scorer(name)(self.located, rows, progress).order()
            return {"ffn": found.ffn, "kv": found.kv}

        return Order(**self.checkpoint.get_or_compute_tensors(f"order {name}", compute))

    def library(self, order: Order, rank: int, progress: Progress) -> CorrectionLibrary:
        """Return the corrections of every block and width, computed once."""
        shape = self.located.shape

        def compute() -> dict[str, torch.Tensor]:
            widths: dict[Part, tuple[int, ...]] = {
                "attention": kv_levels(shape)[1:],
                "mlp": ffn_levels(shape)[1:],
            }
            made = fit_library(self.located, order, self.rows, widths, rank, progress)
            return made.to_tensors()

        return CorrectionLibrary.from_tensors(
            self.checkpoint.get_or_compute_tensors(f"library {rank}", compute)
        )

    def by_kl(
        self,
        order: Order,
        curves: list[Curve],
        library: CorrectionLibrary,
        neurons: float,
        progress: Progress,
    ) -> VariantSpec:
        """Return widths that keep this many neurons in all, chosen by KL on the selection rows."""

        def loss(spec: VariantSpec) -> float:
            reader = variant_forward(
                self.located, partial(apply_mask, self.located, spec, order, library.of(spec))
            )
            return evaluate(self.located, {"it": reader}, self.selection).quality["it"].kl

        start = base_spec(self.located.shape)
        path = self.checkpoint.file_path(f"widths-{neurons:.0f}.db")
        problem = AllocationProblem(start, curves, lambda spec: sum(spec.ffn), neurons)
        options = SearchOptions(TRIALS, storage=f"sqlite:///{path}")
        return search_widths(problem, loss, options, progress).spec
