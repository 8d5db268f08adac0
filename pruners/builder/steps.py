"""The steps of one build, each taken from the checkpoint if it was finished before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from pruners.allocation import (
    AllocationError,
    AllocationProblem,
    CostFunction,
    Curve,
    SearchOptions,
    measure_curves,
)
from pruners.allocation.depth import order_layers_to_skip
from pruners.architecture import LocatedModel
from pruners.artefact.table import Quality
from pruners.builder.readers import FittedReaders, ReadingText, fit_readers
from pruners.builder.recipe import BuildError, Recipe, make_readers
from pruners.builder.selection import SelectedCorrections, Selection, count_parameters_read
from pruners.correction import Corrections, from_tensors, to_tensors
from pruners.data.rows import held_out_rows, sample_rows
from pruners.evaluation.budget_quality import measure_budgets
from pruners.evaluation.evaluate import Evaluation, evaluate, masked_variants
from pruners.importance import make_scorer
from pruners.realization.order import Order
from pruners.realization.variant_set import VariantSet
from pruners.recovery import RecoveryOptions, recover
from pruners.recovery.library import CorrectionLibrary, fit_library
from pruners.recovery.sequential import recover_sequentially
from pruners.support.checkpoint import Checkpoint
from pruners.variant import VariantSpec, base_spec


@dataclass(frozen=True, slots=True)
class BuildRows:
    """Calibration and held-out rows (1-D token ids, ragged or not), and in words what they are.

    Readers are fitted on `reading`; without it there are none.
    """

    calibration: Sequence[torch.Tensor]
    held_out: Sequence[torch.Tensor]
    calibration_source: str
    held_out_source: str
    reading: ReadingText | None = None


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """How a build runs; nothing here is part of what is built, but `step_seconds`.

    Finished steps go into `checkpoint`. Layers are computed on `device`, one at a time, or where
    the model is. A latency budget needs `step_seconds`: the seconds of a decode step of a variant.
    """

    checkpoint: Checkpoint = field(default_factory=lambda: Checkpoint(None, None))
    progress: Progress | None = None
    device: torch.device | None = None
    step_seconds: CostFunction | None = None


@dataclass(frozen=True, slots=True)
class BuildSteps:
    """The steps of one build, in the order in which they are called."""

    located: LocatedModel
    rows: BuildRows
    recipe: Recipe
    options: BuildOptions

    @property
    def calibration_rows(self) -> list[torch.Tensor]:
        """The rows that rank units and fit corrections."""
        return sample_rows(self.rows.calibration, self.recipe.calibration_tokens, self.recipe.seed)

    @property
    def selection_rows(self) -> list[torch.Tensor]:
        """The calibration rows that no fit sees; layers, widths and corrections are chosen by."""
        rows = held_out_rows(self.calibration_rows)
        return sample_rows(rows, self.recipe.selection_tokens, self.recipe.seed + 1)

    def rank_units(self) -> Order:
        """Return the units by falling importance."""

        def compute() -> dict[str, torch.Tensor]:
            score = make_scorer(self.recipe.importance, self.recipe.seed)
            order = score(self.located, self.calibration_rows, self.options.progress).order()
            return {"ffn": order.ffn, "kv": order.kv}

        return Order(**self.options.checkpoint.get_or_compute_tensors("order", compute))

    def fit_library(
        self, order: Order
    ) -> tuple[CorrectionLibrary, list[dict[str, float | str | int]]]:
        """Return corrections of every block at every width, and their mean errors."""
        fitted: list[CorrectionLibrary] = []

        def compute() -> dict[str, torch.Tensor]:
            widths = self.recipe.widths(self.located.shape)
            rows, rank = self.calibration_rows, self.recipe.rank
            fitted.append(
                fit_library(self.located, order, rows, widths, rank, self.options.progress)
            )
            return fitted[0].to_tensors()

        checkpoint = self.options.checkpoint
        tensors = checkpoint.get_or_compute_tensors("correction library", compute)
        errors = checkpoint.get_or_compute("fit errors", lambda: fitted[0].mean_errors())
        return CorrectionLibrary.from_tensors(tensors), errors

    def order_layers(self, library: CorrectionLibrary) -> tuple[list[int], list[float]]:
        """Return layers in the order they are skipped, and the KL after each."""
        if not self.recipe.deepest():
            return [], []

        def compute() -> list[list[Any]]:
            skipped = order_layers_to_skip(
                self.located,
                self.selection_rows,
                self.recipe.deepest(),
                library.biases_of_skipped(),
                self.options.progress,
            )
            return [list(skipped.layers), list(skipped.kl)]

        layers, kl = self.options.checkpoint.get_or_compute("depth", compute)
        return layers, kl

    def measure_curves(self, order: Order, library: CorrectionLibrary) -> list[Curve]:
        """Return the loss of each block at each width; none if no widths are to be chosen."""
        if not self.recipe.shares:
            return []
        return measure_curves(
            self.located,
            order,
            self.selection_rows,
            library.corrections,
            self.options.checkpoint,
            self.options.progress,
        )

    def allocate_shares(
        self, selection: Selection, curves: Sequence[Curve], library: CorrectionLibrary
    ) -> list[VariantSpec]:
        """Return a variant for each share of the base's cost, named after it in percent.

        Raises `BuildError` for a share that cannot be met.
        """
        seconds, seed = self.options.step_seconds, self.recipe.seed
        prefix = "mix" if seconds is None else "time"
        cost = seconds or count_parameters_read(self.located, library)
        base = base_spec(self.located.shape)
        specs = []
        for share in self.recipe.shares:
            problem = AllocationProblem(base, curves, cost, share * cost(base))
            storage = _storage(self.options.checkpoint.file_path(f"search-{share:g}.db"))
            search = SearchOptions(self.recipe.search, seed, storage)
            try:
                spec = selection.allocate(problem, library, search)
            except AllocationError as error:
                raise BuildError(f"recipe: a share of {share:g}: {error}") from error
            specs.append(replace(spec, name=f"{prefix}-{100 * share:g}"))
        return specs

    def choose_corrections(
        self, selection: Selection, specs: Sequence[VariantSpec], library: CorrectionLibrary
    ) -> dict[str, SelectedCorrections]:
        """Return the corrections with which each variant is nearest to the base, if any help."""
        methods: dict[str, Callable[[VariantSpec], Corrections]] = {"shared": library.of}
        order = selection.order
        if self.recipe.sequential:
            fitted = self._recover_sequentially(specs, order)
            methods["sequential"] = lambda spec: fitted[spec.name]
        elif self.recipe.materialised:
            refits = self._refit(specs, order)
            methods["materialised"] = lambda spec: refits[spec.name]
        return selection.choose_corrections(specs, methods)

    def _refit(self, specs: Sequence[VariantSpec], order: Order) -> dict[str, Corrections]:
        options = RecoveryOptions(materialised=True)
        results = recover(
            self.located, specs, order, self.calibration_rows, options, self.options.progress
        )
        return {s.name: r.corrections for s, r in zip(specs, results, strict=True)}

    def _recover_sequentially(
        self, specs: Sequence[VariantSpec], order: Order
    ) -> dict[str, Corrections]:
        """Fit one variant after the other, each noted as soon as it is finished."""
        options = RecoveryOptions(self.recipe.rank, self.recipe.materialised)
        fitted: dict[str, Corrections] = {}
        for spec in specs:

            def compute(spec: VariantSpec = spec) -> dict[str, torch.Tensor]:
                rows, progress = self.calibration_rows, self.options.progress
                result = recover_sequentially(self.located, spec, order, rows, options, progress)
                return to_tensors(result.corrections)

            tensors = self.options.checkpoint.get_or_compute_tensors(f"fit {spec.name}", compute)
            fitted[spec.name] = from_tensors(tensors)
        return fitted

    def measure_quality(self, variants: VariantSet) -> Evaluation:
        """Return the quality of every candidate on the held-out rows."""
        return evaluate(
            self.located,
            masked_variants(self.located, variants),
            self.rows.held_out,
            progress=self.options.progress,
            checkpoint=self.options.checkpoint,
        )

    def fit_readers(self) -> FittedReaders:
        """Return the recipe's readers; none without text for them, or for an encoder."""
        text = self.rows.reading
        if text is None or not self.located.causal:
            return FittedReaders()
        readers = make_readers(self.recipe.readers, self.located.shape)
        return fit_readers(
            self.located, readers, text, self.options.checkpoint, self.options.progress
        )

    def measure_kv_budgets(self) -> dict[int, Quality]:
        """Return the quality of the base under each KV budget of the recipe, in tokens."""
        return measure_budgets(
            self.located,
            self.rows.held_out,
            self.recipe.kv_budgets,
            self.options.progress,
            self.options.checkpoint,
        )


def _storage(path: Path | None) -> str | None:
    return None if path is None else f"sqlite:///{path}"
