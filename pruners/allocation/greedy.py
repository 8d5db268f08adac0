"""The least error within a budget, one step at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pruners.allocation.base import AllocationError
from pruners.allocation.curves import Curve
from pruners.evaluation.pareto import lower_convex_hull
from pruners.variant import VariantSpec

CostFunction = Callable[[VariantSpec], float]
"""What a budget counts, such as parameters or seconds. A narrower variant never costs more."""


@dataclass(frozen=True, slots=True)
class AllocationProblem:
    """Which widths to choose: `start` is narrowed along `curves` until `cost` fits `budget`.

    Blocks without a curve, and blocks that `start` skips, keep their width. `cost` and `budget`
    share one unit.
    """

    start: VariantSpec
    curves: Sequence[Curve]
    cost: CostFunction
    budget: float


def allocate_greedily(problem: AllocationProblem) -> VariantSpec:
    """Return a variant that costs at most the budget, by the cheapest step of error each time.

    The price of a step is the rise of the error over the cost that it saves. Steps run along the
    lower convex hull of each curve, where greedy is optimal but for the last step; then blocks are
    widened again, one width at a time, while that fits. Choosing structure by measured cost is the
    idea of ZipLM (Kurtic et al. 2023, arXiv 2302.04089). Raises `AllocationError` if the smallest
    widths cost too much, or if a curve does not know the width of `start`.
    """
    start, cost, budget = problem.start, problem.cost, problem.budget
    curves = [curve for curve in problem.curves if curve.width(start) > 0]
    steps = {id(curve): _hull_steps(curve, curve.width(start)) for curve in curves}
    spec, now = start, cost(start)
    while now > budget:
        best: tuple[float, float, VariantSpec, Curve] | None = None
        for curve in curves:
            if len(steps[id(curve)]) > 1:
                (_, error), (width, worse) = steps[id(curve)][:2]
                narrower = curve.at(spec, width)
                saved = now - cost(narrower)
                price = (worse - error) / saved if saved > 0 else float("inf")
                if best is None or price < best[0]:
                    best = price, now - saved, narrower, curve
        if best is None:
            raise AllocationError(f"the smallest widths still cost {now:g}, above {budget:g}")
        _, now, spec, curve = best
        steps[id(curve)].pop(0)
    return _widen(problem, curves, spec)


def _widen(problem: AllocationProblem, curves: Sequence[Curve], spec: VariantSpec) -> VariantSpec:
    """Return `spec` with blocks widened by single steps, the best error a cost first."""
    now = problem.cost(spec)
    while True:
        best: tuple[float, float, VariantSpec] | None = None
        for curve in curves:
            place = curve.widths.index(curve.width(spec))
            if curve.width(spec) < curve.width(problem.start):
                wider = curve.at(spec, curve.widths[place - 1])
                then = problem.cost(wider)
                gain = (curve.errors[place] - curve.errors[place - 1]) / max(then - now, 1e-12)
                if then <= problem.budget and (best is None or gain > best[0]):
                    best = gain, then, wider
        if best is None:
            return spec
        _, now, spec = best


def _hull_steps(curve: Curve, start: int) -> list[tuple[int, float]]:
    """Return (width, error) from `start` down, on the lower convex hull over what is removed."""
    if start not in curve.widths:
        raise AllocationError(f"layer {curve.layer} {curve.part} has no known error at {start}")
    first = curve.widths.index(start)
    widths, errors = curve.widths[first:], curve.errors[first:]
    points = [(start - width, error) for width, error in zip(widths, errors, strict=True)]
    return [(widths[index], errors[index]) for index in lower_convex_hull(points)]
