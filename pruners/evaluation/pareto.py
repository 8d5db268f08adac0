"""Which variants are worth having: those that no other beats in both cost and loss."""

from collections.abc import Mapping, Sequence


def pareto_front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names of the points `(cost, loss)` on the Pareto front, by falling cost.

    A point is left out if another is no worse in both and better in one; of equal points the first
    stays.
    """
    names: list[str] = []
    lowest = float("inf")
    for name, (_, loss) in sorted(points.items(), key=lambda item: item[1]):
        if loss < lowest:
            names.append(name)
            lowest = loss
    return names[::-1]


def pareto_hull(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Return the names on the lower convex hull of the Pareto front, by falling cost.

    No mixture of two other points has both the cost of such a point and less loss.
    """
    names = pareto_front(points)
    saved = [(-points[name][0], points[name][1]) for name in names]
    return [names[index] for index in lower_convex_hull(saved)]


def lower_convex_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points `(x, y)` on the lower convex hull; x must rise strictly."""
    hull: list[int] = []
    for index, point in enumerate(points):
        while len(hull) > 1 and _slope(points[hull[-2]], points[hull[-1]]) >= _slope(
            points[hull[-1]], point
        ):
            hull.pop()
        hull.append(index)
    return hull


def _slope(left: tuple[float, float], right: tuple[float, float]) -> float:
    return (right[1] - left[1]) / (right[0] - left[0])
