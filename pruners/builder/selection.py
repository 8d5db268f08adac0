"""Which widths and corrections to build: choices by measured KL to the base.

They are made on calibration rows that no fit saw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.progress import Progress

from pruners.allocation import (
    AllocationProblem,
    CostFunction,
    SearchOptions,
    allocate_greedily,
    search_widths,
)
from pruners.architecture import LocatedModel
from pruners.correction import Correction, Corrections
from pruners.evaluation.evaluate import VariantForward, evaluate, variant_forward
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.recovery.library import CorrectionLibrary
from pruners.support.checkpoint import Checkpoint
from pruners.variant import Block, VariantSpec


@dataclass(frozen=True, slots=True)
class SelectedCorrections:
    """The corrections with which a variant is nearest to the base, and the KL by method."""

    corrections: dict[Block, Correction]
    kl: dict[str, float]


def count_parameters_read(located: LocatedModel, library: CorrectionLibrary) -> CostFunction:
    """Return a cost function: matrix parameters that one token reads, corrections included."""
    return lambda spec: spec.parameters(located.shape) + library.parameters(spec)


@dataclass(frozen=True, slots=True)
class Selection:
    """Compares candidates on `rows`, 1-D token ids that no fit saw."""

    located: LocatedModel
    order: Order
    rows: Sequence[torch.Tensor]
    checkpoint: Checkpoint
    progress: Progress | None = None

    def allocate(
        self,
        problem: AllocationProblem,
        library: CorrectionLibrary,
        search: SearchOptions,
    ) -> VariantSpec:
        """Return the widths that fit the problem's budget with the least loss.

        Greedy by cached errors; with `search.trials`, that many candidates are compared by their
        KL to the base, corrected by `library`. Raises `AllocationError`.
        """
        if not search.trials:
            return allocate_greedily(problem)

        def loss(spec: VariantSpec) -> float:
            forward = self._forward(spec, library.of(spec))
            quality = evaluate(self.located, {"candidate": forward}, self.rows).quality
            return quality["candidate"].kl

        return search_widths(problem, loss, search, self.progress).spec

    def choose_corrections(
        self,
        specs: Sequence[VariantSpec],
        methods: Mapping[str, Callable[[VariantSpec], Corrections]],
    ) -> dict[str, SelectedCorrections]:
        """Return, for each variant, the corrections of the best method.

        `methods` give the corrections of a variant by name; "none" is always among them.
        """
        methods = {"none": lambda _: {}, **methods}
        forwards: dict[str, VariantForward] = {
            f"{spec.name} {name}": self._forward(spec, corrections(spec))
            for spec in specs
            for name, corrections in methods.items()
        }
        quality = evaluate(
            self.located, forwards, self.rows, progress=self.progress, checkpoint=self.checkpoint
        ).quality
        selected = {}
        for spec in specs:
            kl = {name: quality[f"{spec.name} {name}"].kl for name in methods}
            best = min(kl, key=kl.__getitem__)
            selected[spec.name] = SelectedCorrections(dict(methods[best](spec)), kl)
        return selected

    def _forward(self, spec: VariantSpec, corrections: Corrections) -> VariantForward:
        return variant_forward(
            self.located, partial(apply_mask, self.located, spec, self.order, corrections)
        )
