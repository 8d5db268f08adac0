"""The least error within a budget, one step at a time."""

from collections.abc import Callable, Sequence

from pruners.allocation.base import AllocationError
from pruners.allocation.curves import Curve
from pruners.variant import VariantSpec

Cost = Callable[[VariantSpec], float]
"""What a budget counts: bytes, or milliseconds from a measured table. Narrower never costs more."""


def greedy(start: VariantSpec, curves: Sequence[Curve], cost: Cost, budget: float) -> VariantSpec:
    """Narrows `start` where an error buys the most cost, until it costs at most `budget`.

    Steps run along the lower convex hull of each curve, where greedy is optimal but for the last
    step; then single widths are given back while they fit, so that no block more would. Structure
    chosen by what it costs is the idea of ZipLM (Kurtic et al. 2023, arXiv 2302.04089). Blocks that
    `start` skips stay skipped. Raises `AllocationError` if the smallest widths cost too much.
    """
    open_ = [curve for curve in curves if curve.width(start) > 0]
    steps = {id(curve): _hull(curve, curve.width(start)) for curve in open_}
    spec, now = start, cost(start)
    while now > budget:
        best: tuple[float, float, VariantSpec, Curve] | None = None
        for curve in open_:
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
    return _grown(start, spec, open_, cost, budget)


def _grown(
    start: VariantSpec, spec: VariantSpec, curves: Sequence[Curve], cost: Cost, budget: float
) -> VariantSpec:
    """Gives back the blocks that win the most error a cost, while they fit."""
    now = cost(spec)
    while True:
        best: tuple[float, float, VariantSpec] | None = None
        for curve in curves:
            place = curve.widths.index(curve.width(spec))
            if curve.width(spec) < curve.width(start):
                wider = curve.at(spec, curve.widths[place - 1])
                then = cost(wider)
                won = (curve.errors[place] - curve.errors[place - 1]) / max(then - now, 1e-12)
                if then <= budget and (best is None or won > best[0]):
                    best = won, then, wider
        if best is None:
            return spec
        _, now, spec = best


def _hull(curve: Curve, start: int) -> list[tuple[int, float]]:
    """Widths from `start` down on the lower convex hull of the errors over what is removed."""
    if start not in curve.widths:
        raise AllocationError(f"layer {curve.layer} {curve.part} has no known error at {start}")
    first = curve.widths.index(start)
    hull: list[tuple[int, float]] = []
    for width, error in zip(curve.widths[first:], curve.errors[first:], strict=True):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], (width, error)):
            hull.pop()
        hull.append((width, error))
    return hull


def _slope(one: tuple[int, float], other: tuple[int, float]) -> float:
    return (other[1] - one[1]) / (one[0] - other[0])
