"""From a base and calibration rows to an artefact: rank, correct, choose, measure, keep."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from pruners.allocation import Cost, Curve, measured
from pruners.allocation.depth import greedy_layers
from pruners.architecture import LocatedModel, locate
from pruners.artefact.folder import Artefact
from pruners.artefact.table import Quality, Table
from pruners.builder.recipe import BuildError, Recipe
from pruners.builder.selection import Chosen, Own, allocate, choose_corrections, touched
from pruners.calibration.offload import offload_layers
from pruners.correction import from_tensors, to_tensors
from pruners.data.rows import count_tokens, describe_rows, hash_rows, held_out_rows, sample_rows
from pruners.evaluation.cost import cost_of
from pruners.evaluation.evaluate import evaluate, masked
from pruners.evaluation.pareto import front
from pruners.importance import make_scorer
from pruners.kv.budget_quality import measure_budgets
from pruners.realization.order import Order
from pruners.recovery import Recipe as Fit
from pruners.recovery import Recovered, recover
from pruners.recovery.library import Library, library_from, make_library
from pruners.recovery.sequence import recover_in_sequence
from pruners.support.checkpoint import Checkpoint
from pruners.support.fingerprint import fingerprint
from pruners.variant import BASE, VariantSpec, base_spec


@dataclass(frozen=True, slots=True)
class Sources:
    """Calibration and held-out rows (1-D token ids, ragged or not), and in words what they are."""

    calibration: Sequence[torch.Tensor]
    held_out: Sequence[torch.Tensor]
    calibration_source: str
    held_out_source: str


def build(
    model: nn.Module,
    model_name: str,
    sources: Sources,
    recipe: Recipe,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    device: torch.device | None = None,
    seconds: Cost | None = None,
) -> Artefact:
    """Builds the recipe's variants of a `transformers` language model.

    The model is put in evaluation mode and is otherwise left as it was. What is finished goes into
    the checkpoint. Layers are computed on `device`, one at a time, or where the model is. A
    latency budget needs `seconds`, which says how long a step of a variant takes. Raises
    `BuildError` if the recipe does not fit or held-out rows were calibrated on,
    `UnsupportedModelError` for an unknown family.
    """
    located = locate(model)
    recipe.check(located.shape)
    _check_rows(sources)
    if (seconds is None) == (recipe.budget == "latency"):
        raise BuildError(
            f"recipe: budget '{recipe.budget}' does not go with the cost that is given"
        )
    if device is not None and recipe.importance == "taylor":
        raise BuildError(
            "importance 'taylor' needs gradients, which layers on a device cannot give; "
            "leave the device out"
        )
    model.eval()
    run = _Run(located, sources, recipe, checkpoint or Checkpoint(None, None), progress, seconds)
    with nullcontext() if device is None else offload_layers(located, device):
        return _built(run, model_name)


def _built(run: "_Run", model_name: str) -> Artefact:
    located, recipe, sources = run.located, run.recipe, run.sources
    order = run.order()
    library, outputs = run.library(order)
    skip_order, skip_kl = run.depth(library)
    curves = run.curves(order, library)
    specs = recipe.uniform_specs(located.shape, skip_order)
    specs += run.allocated(order, curves, library)
    chosen = run.corrections(order, specs, library)
    own = {name: choice.corrections for name, choice in chosen.items() if choice.corrections}
    every = (base_spec(located.shape), *specs)
    cost = {s.name: cost_of(s, own.get(s.name, {}), located) for s in every}
    quality, evaluation = run.quality(order, specs, own)
    paid = {s.name: run.seconds(s) if run.seconds else cost[s.name].touched for s in every}
    points = {BASE: (paid[BASE], 0.0)} | {n: (paid[n], q.kl) for n, q in quality.items()}
    names = [n for n in (points if recipe.keep_all else front(points)) if n != BASE]
    return Artefact(
        model_name=model_name,
        fingerprint=fingerprint(located.model),
        shape=located.shape,
        ffn_order=order.ffn.int(),
        kv_order=order.kv.int(),
        variants=tuple(sorted((s for s in specs if s.name in names), key=_by(names))),
        corrections={name: own[name] for name in names if name in own},
        table=Table(
            evaluation=evaluation,
            quality={name: quality[name] for name in names},
            kv_quality=run.kv_quality(),
            cost={name: cost[name] for name in (BASE, *names)},
        ),
        provenance={
            "versions": {name: _version(name) for name in ("trimtab", "torch", "transformers")},
            "recipe": asdict(recipe),
            "calibration": describe_rows(run.calibration, sources.calibration_source),
            "selection": describe_rows(run.selection, sources.calibration_source),
            "skip_order": {"layers": skip_order, "kl": skip_kl},
            "recovery": {"outputs": outputs, "kl": {n: chosen[n].kl for n in names}},
            "beaten": {
                name: {"touched": cost[name].touched, "kl": point[1]}
                for name, point in points.items()
                if name not in (BASE, *names)
            },
        },
    )


@dataclass(slots=True)
class _Run:
    """The steps of one build. Each is taken from the checkpoint if it was finished before."""

    located: LocatedModel
    sources: Sources
    recipe: Recipe
    checkpoint: Checkpoint
    progress: Progress | None
    seconds: Cost | None

    @property
    def calibration(self) -> list[torch.Tensor]:
        return sample_rows(
            self.sources.calibration, self.recipe.calibration_tokens, self.recipe.seed
        )

    @property
    def selection(self) -> list[torch.Tensor]:
        rows = held_out_rows(self.calibration)
        return sample_rows(rows, self.recipe.selection_tokens, self.recipe.seed + 1)

    def order(self) -> Order:
        """Units by falling importance."""

        def compute() -> dict[str, torch.Tensor]:
            score = make_scorer(self.recipe.importance, self.recipe.seed)
            order = score(self.located, self.calibration, self.progress).order()
            return {"ffn": order.ffn, "kv": order.kv}

        return Order(**self.checkpoint.get_or_compute_tensors("order", compute))

    def library(self, order: Order) -> tuple[Library, list[dict[str, float | str | int]]]:
        """Corrections of every block at every width to choose from, and what they bought."""
        made: list[Library] = []

        def compute() -> dict[str, torch.Tensor]:
            rank, widths = self.recipe.rank, self.recipe.widths(self.located.shape)
            rows = self.calibration
            made.append(make_library(self.located, order, rows, *widths, rank, self.progress))
            return made[0].to_tensors()

        tensors = self.checkpoint.get_or_compute_tensors("library", compute)
        outputs = self.checkpoint.get_or_compute("bought", lambda: made[0].summary())
        return library_from(tensors), outputs

    def depth(self, library: Library) -> tuple[list[int], list[float]]:
        """Layers in the order they are skipped, and the KL after each."""
        if not self.recipe.deepest():
            return [], []

        def compute() -> list[list[Any]]:
            biases = {b: c.bias for (b, width), c in library.corrections.items() if width == 0}
            rows, deepest = self.selection, self.recipe.deepest()
            found = greedy_layers(self.located, rows, deepest, biases, self.progress)
            return [list(found.layers), list(found.kl)]

        layers, kl = self.checkpoint.get_or_compute("depth", compute)
        return layers, kl

    def curves(self, order: Order, library: Library) -> list[Curve]:
        """What each block costs at each level; needed only to choose widths by."""
        if not self.recipe.shares:
            return []
        rows, corrections = self.selection, library.corrections
        return measured(self.located, order, rows, corrections, self.checkpoint, self.progress)

    def allocated(
        self, order: Order, curves: Sequence[Curve], library: Library
    ) -> list[VariantSpec]:
        """A variant for each share of what the base costs, named after it in percent."""
        prefix = "mix" if self.seconds is None else "time"
        cost = self.seconds or touched(self.located, library)
        choose = partial(allocate, self.located, order, curves, library, cost, rows=self.selection)
        found = []
        for share in self.recipe.shares:
            spec = choose(
                share=share,
                trials=self.recipe.search,
                seed=self.recipe.seed,
                storage=self.checkpoint.file_path(f"search-{share:g}.db"),
                progress=self.progress,
            )
            found.append(replace(spec, name=f"{prefix}-{100 * share:g}"))
        return found

    def corrections(
        self, order: Order, specs: Sequence[VariantSpec], library: Library
    ) -> dict[str, Chosen]:
        """The corrections that each variant is served with, if any help it."""
        recipe, rows = self.recipe, self.calibration
        tiers: dict[str, Callable[[VariantSpec], Own]] = {"shared": library.of}
        if recipe.sequential:
            fit = partial(recover_in_sequence, self.located, order=order, rows=rows)
            made = self._fitted(specs, fit, Fit(recipe.rank, recipe.materialised))
            tiers["sequential"] = lambda spec: made[spec.name]
        elif recipe.materialised:
            found = recover(self.located, specs, order, rows, Fit(materialised=True), self.progress)
            refits = {s.name: r.corrections for s, r in zip(specs, found, strict=True)}
            tiers["materialised"] = lambda spec: refits[spec.name]
        return choose_corrections(
            self.located, order, specs, tiers, self.selection, self.checkpoint, self.progress
        )

    def _fitted(
        self, specs: Sequence[VariantSpec], fit: Callable[..., Recovered], recipe: Fit
    ) -> dict[str, Own]:
        """One variant after the other, each noted as soon as it is through."""
        found: dict[str, Own] = {}
        for spec in specs:

            def compute(spec: VariantSpec = spec) -> dict[str, torch.Tensor]:
                return to_tensors(fit(spec=spec, recipe=recipe, progress=self.progress).corrections)

            found[spec.name] = from_tensors(
                self.checkpoint.get_or_compute_tensors(f"fit {spec.name}", compute)
            )
        return found

    def quality(
        self, order: Order, specs: Sequence[VariantSpec], own: Mapping[str, Own]
    ) -> tuple[dict[str, Quality], dict[str, Any]]:
        """Of every candidate on the held-out rows, and what was measured on."""
        located, rows = self.located, self.sources.held_out
        readers = masked(located, specs, order, own)
        found = evaluate(located, readers, rows, progress=self.progress, checkpoint=self.checkpoint)
        return found.quality, found.about(rows, self.sources.held_out_source)

    def kv_quality(self) -> dict[int, Quality]:
        rows, budgets = self.sources.held_out, self.recipe.kv_budgets
        return measure_budgets(self.located, rows, budgets, self.progress, self.checkpoint)


def _by(names: Sequence[str]) -> Callable[[VariantSpec], int]:
    return lambda spec: names.index(spec.name)


def _check_rows(sources: Sources) -> None:
    calibration, held_out = sources.calibration, sources.held_out
    for what, rows in (("calibration", calibration), ("held-out", held_out)):
        if count_tokens(rows) < 2:
            raise BuildError(f"{what} rows hold no text to predict; give at least 2 tokens")
    seen = {hash_rows([row]) for row in calibration}
    if any(hash_rows([row]) in seen for row in held_out):
        raise BuildError("a held-out row is also a calibration row; measure on other text")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"
