"""From a base and calibration rows to an artefact: rank, correct, choose, measure, keep."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from pruners.architecture import locate
from pruners.artefact.folder import Artefact
from pruners.artefact.table import Cost, Quality, Table
from pruners.builder.recipe import BuildError, Recipe
from pruners.builder.selection import Selection
from pruners.builder.steps import BuildOptions, BuildRows, BuildSteps
from pruners.calibration.offload import offload_layers
from pruners.data.rows import count_tokens, describe_rows, hash_rows
from pruners.evaluation.cost import compute_cost
from pruners.evaluation.pareto import pareto_front
from pruners.realization.variant_set import VariantSet
from pruners.support.fingerprint import fingerprint
from pruners.variant import BASE, VariantSpec, base_spec

_Points = dict[str, tuple[float, float]]


def build(
    model: nn.Module,
    model_name: str,
    rows: BuildRows,
    recipe: Recipe,
    options: BuildOptions | None = None,
) -> Artefact:
    """Build the recipe's variants of a `transformers` language model.

    The model is put in evaluation mode and is otherwise left as it was. Raises `BuildError` if the
    recipe does not fit or held-out rows were calibrated on, `UnsupportedModelError` for an unknown
    family.
    """
    options = options or BuildOptions()
    located = locate(model)
    recipe.check(located.shape)
    _check_rows(rows)
    if (options.step_seconds is None) == (recipe.budget == "latency"):
        raise BuildError(
            f"recipe: budget '{recipe.budget}' does not go with the cost that is given"
        )
    if options.device is not None and recipe.importance == "taylor":
        raise BuildError(
            "importance 'taylor' needs gradients, which layers on a device cannot give; "
            "leave the device out"
        )
    model.eval()
    steps = BuildSteps(located, rows, recipe, options)
    with nullcontext() if options.device is None else offload_layers(located, options.device):
        return _run(steps, model_name)


def _run(steps: BuildSteps, model_name: str) -> Artefact:
    located, recipe, rows = steps.located, steps.recipe, steps.rows
    order = steps.rank_units()
    selection = Selection(
        located, order, steps.selection_rows, steps.options.checkpoint, steps.options.progress
    )
    library, mean_errors = steps.fit_library(order)
    skip_order, skip_kl = steps.order_layers(library)
    curves = steps.measure_curves(order, library)
    specs = recipe.uniform_specs(located.shape, skip_order)
    specs += steps.allocate_shares(selection, curves, library)
    selected = steps.choose_corrections(selection, specs, library)
    corrections = {n: one.corrections for n, one in selected.items() if one.corrections}
    variants = VariantSet(order, specs, corrections)
    evaluation = steps.measure_quality(variants)
    every = (base_spec(located.shape), *specs)
    cost = {s.name: compute_cost(s, variants.corrections_of(s), located) for s in every}
    fitted = steps.fit_readers()
    points = _points(steps, every, cost, evaluation.quality)
    names = [n for n in (points if recipe.keep_all else pareto_front(points)) if n != BASE]
    return Artefact(
        model_name=model_name,
        fingerprint=fingerprint(located.model),
        shape=located.shape,
        ffn_order=order.ffn.int(),
        kv_order=order.kv.int(),
        variants=tuple(
            sorted((s for s in specs if s.name in names), key=lambda s: names.index(s.name))
        ),
        corrections={name: corrections[name] for name in names if name in corrections},
        table=Table(
            evaluation=evaluation.describe(rows.held_out, rows.held_out_source),
            quality={name: evaluation.quality[name] for name in names},
            kv_quality=steps.measure_kv_budgets(),
            cost={name: cost[name] for name in (BASE, *names)},
            reader_quality=fitted.quality,
            reader_cost=fitted.cost,
        ),
        readers=fitted.readers,
        maps=fitted.maps,
        provenance={
            "versions": {name: _version(name) for name in ("trimtab", "torch", "transformers")},
            "recipe": asdict(recipe),
            "calibration": describe_rows(steps.calibration_rows, rows.calibration_source),
            "selection": describe_rows(steps.selection_rows, rows.calibration_source),
            "skip_order": {"layers": skip_order, "kl": skip_kl},
            "recovery": {"outputs": mean_errors, "kl": {n: selected[n].kl for n in names}},
            "beaten": {
                name: {"touched": cost[name].bytes_read, "kl": kl}
                for name, (_, kl) in points.items()
                if name not in (BASE, *names)
            },
            **fitted.provenance(),
        },
    )


def _points(
    steps: BuildSteps,
    specs: Sequence[VariantSpec],
    cost: Mapping[str, Cost],
    quality: Mapping[str, Quality],
) -> _Points:
    """Return (cost in the recipe's budget, KL to the base) of each variant, the base first."""
    seconds = steps.options.step_seconds
    paid = {s.name: seconds(s) if seconds else cost[s.name].bytes_read for s in specs}
    return {BASE: (paid[BASE], 0.0)} | {n: (paid[n], q.kl) for n, q in quality.items()}


def _check_rows(rows: BuildRows) -> None:
    calibration, held_out = rows.calibration, rows.held_out
    for what, some in (("calibration", calibration), ("held-out", held_out)):
        if count_tokens(some) < 2:
            raise BuildError(f"{what} rows hold no text to predict; give at least 2 tokens")
    calibrated = {hash_rows([row]) for row in calibration}
    if any(hash_rows([row]) in calibrated for row in held_out):
        raise BuildError("a held-out row is also a calibration row; measure on other text")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"
