"""Which actions are worth mixing: the concave hull of the quality kept over the cost."""

import math
from collections.abc import Sequence

from policies.observation import Candidate


def worth_mixing(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no mix of two others beats, at their cost, in mean exp(-loss).

    Serving some requests by one of these and the rest by its neighbour is the best that can be done
    with a given amount of work; what lies under the hull loses more than such a mix.
    """
    kept: list[tuple[float, float, Candidate]] = []
    points = ((c.cost, _quality(c), c) for c in candidates)
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if kept and point[1] <= kept[-1][1]:
            continue  # dearer and no better
        while len(kept) > 1 and _under(kept[-2], kept[-1], point):
            kept.pop()
        kept.append(point)
    return [candidate for _, _, candidate in kept]


def _quality(candidate: Candidate) -> float:
    return 0.0 if candidate.loss is None else math.exp(-candidate.loss)


def _under(
    left: tuple[float, float, Candidate],
    middle: tuple[float, float, Candidate],
    right: tuple[float, float, Candidate],
) -> bool:
    """Whether the middle point lies on or under the line between the others."""
    rise = (middle[1] - left[1]) * (right[0] - left[0])
    return rise <= (right[1] - left[1]) * (middle[0] - left[0])
