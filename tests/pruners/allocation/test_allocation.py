import dataclasses
import itertools
import math
import sys
from functools import partial

import pytest
import torch

from pruners.allocation import (
    AllocationError,
    AllocationProblem,
    Curve,
    SearchOptions,
    additive_loss,
    allocate_greedily,
    curves_of_elimination,
    curves_of_summed_scores,
    ffn_levels,
    increasing_widths,
    kv_levels,
    measure_curves,
    search_widths,
    standardised_widths,
    uniform_widths,
)
from pruners.architecture import locate
from pruners.evaluation.evaluate import evaluate, variant_forward
from pruners.importance import ImportanceScores, LeastSquares
from pruners.realization.mask import apply_mask
from pruners.recovery.library import CorrectionLibrary, fit_library
from pruners.support.checkpoint import Checkpoint
from pruners.variant import VariantSpec, base_spec
from tests.support.models import random_order, random_rows, tiny_model

SHAPE = locate(tiny_model()).shape
BASE = base_spec(SHAPE)


def parameters(spec: VariantSpec) -> float:
    return spec.body_parameters(SHAPE)


def random_scores(layers: int, units: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(layers, units, generator=torch.Generator().manual_seed(seed))


def random_curves(seed: int = 0) -> list[Curve]:
    return curves_of_summed_scores(
        ImportanceScores(random_scores(3, 96, seed), random_scores(3, 2, seed + 1)), SHAPE
    )


WAYS = {
    "uniform": lambda layers, full, keep: uniform_widths(layers, full, keep),
    "increasing": lambda layers, full, keep: increasing_widths(layers, full, keep),
    "standardised": lambda layers, full, keep: standardised_widths(
        random_scores(layers, full), keep
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("keep", [1.0, 0.87, 0.75, 0.5, 0.3, 0.1])
def test_budgets_are_met_exactly_in_whole_blocks(way: str, keep: float):
    widths = WAYS[way](30, 1536, keep)
    assert len(widths) == 30
    assert all(0 < width <= 1536 and width % 32 == 0 for width in widths)
    assert sum(widths) == 32 * round(30 * 48 * keep)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("full", "keep"), [(1536, 0.01), (1536, 1.1), (100, 0.5)])
def test_budgets_that_cannot_be_met_are_refused(way: str, full: int, keep: float):
    with pytest.raises(AllocationError, match=r"cannot keep|not a multiple of 32"):
        WAYS[way](30, full, keep)


def test_uniform_is_equal_where_it_can_be():
    assert uniform_widths(30, 1536, 0.75) == (1152,) * 30
    assert uniform_widths(3, 96, 4 / 9) == (64, 32, 32)


def test_increasing_takes_more_the_deeper():
    widths = increasing_widths(30, 1536, 0.5)
    assert widths[0] == 1536
    assert list(widths) == sorted(widths, reverse=True)
    assert widths[1] - widths[2] > widths[20] - widths[21]


def test_standardised_ignores_the_scale_of_a_layer():
    scores = random_scores(4, 320)
    scores[2, :100] += 3  # few neurons stand out
    widths = standardised_widths(scores, 0.5)
    assert standardised_widths(scores * torch.tensor([[1.0], [50], [2], [0.1]]) + 7, 0.5) == widths
    assert widths[2] < min(widths[0], widths[1], widths[3])


def test_standardised_keeps_the_best_blocks():
    scores = random_scores(3, 96)
    z = (scores - scores.mean(1, keepdim=True)) / scores.std(1, correction=0, keepdim=True)
    worth = z.sort(1, descending=True).values.view(3, 3, 32).mean(-1)
    best = max(
        (widths for widths in itertools.product((1, 2, 3), repeat=3) if sum(widths) == 5),
        key=lambda widths: sum(worth[i, :w].sum().item() for i, w in enumerate(widths)),
    )
    assert standardised_widths(scores, 5 / 9) == tuple(32 * width for width in best)


def exhaustive(curves: list[Curve], budget: float) -> float:
    loss = additive_loss(curves)
    return min(
        loss(spec)
        for kv in itertools.product((1, 2), repeat=3)
        for ffn in itertools.product((32, 64, 96), repeat=3)
        if parameters(spec := VariantSpec("x", kv, ffn)) <= budget
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.95, 0.8, 0.6])
def test_greedy_fits_the_budget_and_is_near_the_best(seed: int, share: float):
    curves, budget = random_curves(seed), share * parameters(BASE)
    spec = allocate_greedily(AllocationProblem(BASE, curves, parameters, budget))
    assert parameters(spec) <= budget
    for curve in curves:  # nothing more would fit
        place = curve.widths.index(curve.width(spec))
        if place:
            assert parameters(curve.at(spec, curve.widths[place - 1])) > budget
    best = exhaustive(curves, budget)
    assert best <= additive_loss(curves)(spec) <= 1.25 * best


def test_greedy_is_exact_on_convex_curves_of_one_cost():
    curves = [c for c in random_curves() if c.part == "mlp"]
    for blocks in range(3, 10):
        spec = allocate_greedily(AllocationProblem(BASE, curves, lambda s: sum(s.ffn), 32 * blocks))
        assert sum(spec.ffn) == 32 * blocks
        losses = [
            additive_loss(curves)(VariantSpec("x", BASE.kv_groups, ffn))
            for ffn in itertools.product((32, 64, 96), repeat=3)
            if sum(ffn) == 32 * blocks
        ]
        assert additive_loss(curves)(spec) == pytest.approx(min(losses))


def test_greedy_spends_where_the_measured_cost_falls():
    """Latency that only layer 2 can lower."""
    spec = allocate_greedily(
        AllocationProblem(BASE, random_curves(), lambda s: 10 + s.ffn[2] / 32, 11)
    )
    assert spec.ffn == (96, 96, 32)
    assert spec.kv_groups == BASE.kv_groups


def test_greedy_keeps_skipped_blocks_skipped_and_a_wide_budget_whole():
    start = VariantSpec("x", (2, 0, 2), (96, 96, 0))
    spec = allocate_greedily(
        AllocationProblem(start, random_curves(), parameters, 0.5 * parameters(BASE))
    )
    assert spec.kv_groups[1] == 0
    assert spec.ffn[2] == 0
    assert (
        allocate_greedily(AllocationProblem(start, random_curves(), parameters, math.inf)) == start
    )


def test_greedy_refuses_a_budget_below_the_smallest_widths():
    with pytest.raises(AllocationError, match="smallest widths still cost"):
        allocate_greedily(AllocationProblem(BASE, random_curves(), parameters, 10))


def test_curves_of_scores_are_cumulative_errors():
    scores = ImportanceScores(random_scores(3, 96), random_scores(3, 2))
    curve = next(
        c for c in curves_of_summed_scores(scores, SHAPE) if (c.layer, c.part) == (1, "mlp")
    )
    falling = scores.ffn[1].sort(descending=True).values
    assert curve.widths == (96, 64, 32)
    assert curve.errors == pytest.approx((0, falling[64:].sum().item(), falling[32:].sum().item()))

    curve = next(
        c for c in curves_of_elimination(scores, SHAPE) if (c.layer, c.part) == (2, "attention")
    )
    assert curve.widths == (2, 1)
    assert curve.errors == pytest.approx((0, scores.kv[2].min().item()))


def test_eliminated_curves_of_a_model_rise():
    located = locate(tiny_model())
    for curve in curves_of_elimination(
        LeastSquares()(located, random_rows(8, (40,))), located.shape
    ):
        assert list(curve.errors) == sorted(curve.errors)
        assert curve.errors[-1] < 1


@pytest.mark.parametrize("corrected", [False, True])
def test_measured_curves_are_the_kl_of_one_cut_block(corrected: bool):
    located = locate(tiny_model(intermediate_size=256))
    shape, rows = located.shape, random_rows(4, (20,))
    order = random_order(shape)
    library = CorrectionLibrary()
    if corrected:
        calibration = random_rows(8, (20,), seed=3)
        library = fit_library(
            located, order, calibration, {"attention": (1, 0), "mlp": ffn_levels(shape)[1:]}, 4
        )
    curves = measure_curves(located, order, rows, library.corrections, Checkpoint(None, None))
    assert [(c.layer, c.part) for c in curves][:2] == [(0, "attention"), (0, "mlp")]
    assert curves[0].widths == (2, 1, 0)
    assert curves[1].widths == (256, 224, 192, 160, 128, 96, 64, 32, 0)
    base = base_spec(shape)
    for curve, width in ((curves[3], 192), (curves[3], 0), (curves[2], 1), (curves[4], 0)):
        spec = curve.at(base, width)
        reader = variant_forward(
            located, partial(apply_mask, located, spec, order, library.of(spec))
        )
        kl = evaluate(located, {"one": reader}, rows).quality["one"].kl
        assert curve.errors[curve.widths.index(width)] == pytest.approx(kl, rel=1e-3)
        assert additive_loss(curves)(spec) == pytest.approx(kl, rel=1e-3)
    errors = dict(zip(curves[1].widths, curves[1].errors, strict=True))
    # On a power law of what is removed: twice as much costs as many times more.
    assert errors[224] / errors[192] == pytest.approx(errors[192] / errors[128])
    assert errors[192] < errors[160] < errors[128]
    assert additive_loss(curves)(base) == 0


def test_levels_are_eighths_in_multiples_of_32():
    shape = dataclasses.replace(SHAPE, ffn=1536, kv_groups=3)
    assert ffn_levels(shape) == (1536, 1344, 1152, 960, 768, 576, 384, 192, 0)
    assert kv_levels(shape) == (3, 2, 1, 0)
    assert ffn_levels(dataclasses.replace(SHAPE, ffn=96)) == (96, 64, 32, 0)
    assert ffn_levels(dataclasses.replace(SHAPE, ffn=32)) == (32, 0)


def test_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    problem = AllocationProblem(BASE, random_curves(), parameters, 0.7 * parameters(BASE))
    with pytest.raises(AllocationError, match=r"pip install 'trimtab\[search\]'"):
        search_widths(problem, additive_loss([]), SearchOptions(1))


@pytest.mark.slow
def test_search_is_never_worse_than_greedy_repeats_and_resumes(tmp_path):
    pytest.importorskip("optuna")
    curves, budget = random_curves(3), 0.7 * parameters(BASE)
    problem = AllocationProblem(BASE, curves, parameters, budget)
    scored: list[VariantSpec] = []

    def loss(spec: VariantSpec) -> float:
        scored.append(spec)
        return additive_loss(curves)(spec)

    storage = f"sqlite:///{tmp_path}/search.db"
    first = search_widths(problem, loss, SearchOptions(6, storage=storage))
    assert first.trials == 6
    assert first.loss <= first.greedy_loss
    assert all(parameters(spec) <= budget for spec in scored)
    before = len(scored)
    on = search_widths(problem, loss, SearchOptions(15, storage=storage))
    assert on.trials == 15
    assert len(scored) == before + 1 + 9
    assert on.loss <= first.loss
    assert additive_loss(curves)(on.spec) == pytest.approx(on.loss)
    with pytest.raises(AllocationError, match="other curves or another budget"):
        search_widths(
            dataclasses.replace(problem, budget=budget + 1),
            loss,
            SearchOptions(15, storage=storage),
        )

    one, two = (search_widths(problem, loss, SearchOptions(10, seed=4)) for _ in range(2))
    assert one == two
