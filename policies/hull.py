"""Which actions are worth mixing: the concave hull of quality over cost."""

import math
from collections.abc import Sequence

from policies.observation import Candidate

_Point = tuple[float, float, Candidate]
"""Cost, quality, and the candidate that has them."""


def concave_hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates on the upper concave hull of (cost, exp(-loss)), the cheapest first.

    Serving some requests by one of these and the rest by its neighbour gives the highest mean
    quality for a given mean cost. A candidate below the hull is worse than such a mix. Monotone
    chain (Andrew 1979).
    """
    hull: list[_Point] = []
    points = ((c.cost, _quality(c), c) for c in candidates)
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if hull and point[1] <= hull[-1][1]:
            continue  # it costs as much or more and is no better
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return [candidate for _, _, candidate in hull]


def best_yield(candidates: Sequence[Candidate]) -> Candidate:
    """Return the candidate of the highest yield: exp(-loss) over cost.

    On the hull with the origin, which is refusing, it is the first. A mix with anything cheaper is
    worse than refusing some requests and serving the others by this one.
    """
    return max(candidates, key=lambda c: _quality(c) / max(c.cost, 1e-9))


def _quality(candidate: Candidate) -> float:
    return 0.0 if candidate.loss is None else math.exp(-candidate.loss)


def _is_below(left: _Point, middle: _Point, right: _Point) -> bool:
    """Return whether the middle point lies on or below the line between the others."""
    rise = (middle[1] - left[1]) * (right[0] - left[0])
    return rise <= (right[1] - left[1]) * (middle[0] - left[0])
