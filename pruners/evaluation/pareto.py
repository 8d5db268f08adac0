"""Which variants are worth having: those that no other beats in both cost and loss."""

from collections.abc import Mapping


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points `(cost, loss)` on the Pareto front, by falling cost.

    A point is left out if another is no worse in both and better in one; of equal points the first
    stays.
    """
    kept: list[str] = []
    least = float("inf")
    for name, (_, loss) in sorted(points.items(), key=lambda item: item[1]):
        if loss < least:
            kept.append(name)
            least = loss
    return kept[::-1]


def hull(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names on the lower convex hull of the front: mixing two others never beats them."""
    names: list[str] = []
    for name in front(points):
        while len(names) > 1 and _above(points[names[-2]], points[names[-1]], points[name]):
            names.pop()
        names.append(name)
    return names


def _above(
    left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]
) -> bool:
    """Whether the middle point lies on or above the line through the others."""
    share = (middle[0] - left[0]) / (right[0] - left[0])
    return middle[1] >= left[1] + share * (right[1] - left[1])
