"""Training the rule policy: which share of the objective the queue may use before answers shrink.

A candidate is tried by replaying traffic; the replay is handed in, so that nothing here knows of an
engine. It is chosen on one part of the traffic and judged on another, against the default and
against never shrinking, with bootstrap intervals over requests.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from policies.rule import RuleSettings

HEADROOMS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_RESAMPLES = 1000

Replay = Callable[[RuleSettings | None, str], Sequence[float]]
"""Settings (None: always the base) and a split, `train` or `test`, to each request's score: the
kept quality exp(-loss) if it met its objectives, else 0, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Trained:
    """The chosen settings, whether they beat the default, and the evidence."""

    settings: RuleSettings
    promoted: bool
    report: dict[str, Any]


def train(replay: Replay, seed: int, tick: Callable[[], None] = lambda: None) -> Trained:
    """Chooses the headroom with the best mean score on `train`; judges it on `test`.

    Promoted only if the 95 % interval of its gain over the default lies above zero. `tick` is
    called after every replay, of which there are `len(HEADROOMS) + 3`.
    """
    scores: dict[float, float] = {}
    for headroom in HEADROOMS:
        scores[headroom] = _mean(replay(RuleSettings(headroom=headroom), "train"))
        tick()
    default = RuleSettings()
    # The default wins ties: a change has to be worth something.
    best = max(HEADROOMS, key=lambda h: (round(scores[h], 6), h == default.headroom))
    settings = RuleSettings(headroom=best)
    found = {}
    for name, tried in (("trained", settings), ("default", default), ("base", None)):
        found[name] = replay(tried, "test")
        tick()
    gain = bootstrap(_differences(found["trained"], found["default"]), seed)
    over_base = bootstrap(_differences(found["trained"], found["base"]), seed)
    return Trained(
        settings=settings,
        promoted=gain[0] > 0,
        report={
            "train_score_by_headroom": {str(h): scores[h] for h in HEADROOMS},
            "test_score": {name: _mean(values) for name, values in found.items()},
            "gain_over_default_95": gain,
            "gain_over_base_95": over_base,
            "test_requests": len(found["trained"]),
            "seed": seed,
        },
    )


def bootstrap(values: Sequence[float], seed: int) -> tuple[float, float]:
    """95 % percentile interval of the mean, by resampling."""
    chance = random.Random(seed)
    means = sorted(_mean(chance.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _differences(left: Sequence[float], right: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]
