"""What a decode step costs, and how many guessed tokens (drafts) are worth verifying in it."""

from dataclasses import dataclass, field

MIN_GAIN = 1.05
"""Expected tokens per second over those without drafts, below which none are made."""
_MAX_DRAFTS = 6  # for one sequence in one step


@dataclass(slots=True)
class StepCost:
    """Seconds of a decode step as `fixed + rows * per_row`, fitted to recent steps."""

    _decay: float = 0.98
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # 1, rows, rows^2, s, rows * s

    def observe(self, rows: int, seconds: float) -> None:
        """Add one decode step of `rows` rows."""
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [self._decay * old + add for old, add in zip(self._sums, new, strict=True)]

    def draft_cost(self, rows: int) -> float:
        """Return what one more row for each of `rows` sequences costs, over the cost of their step.

        Until steps of different sizes were observed, 0.1 a row is assumed.
        """
        count, x, xx, y, xy = self._sums
        spread = count * xx - x * x
        if count < 4 or spread < 0.5 * count:
            return min(1.0, 0.1 * rows)
        per_row = max(0.0, (count * xy - x * y) / spread)
        whole = (y - per_row * x) / count + per_row * rows
        return min(1.0, per_row * rows / whole) if whole > 0 else 1.0


def best_draft_count(
    acceptance: float, verify_cost: float, draft_cost: float = 0.0
) -> tuple[float, int]:
    """Return the highest gain in tokens per second, and the number of drafts that gives it.

    A draft is accepted with probability `acceptance` if all before it were. Computing it costs
    `draft_cost` and verifying it `verify_cost`, both over the cost of a step. With `n` drafts the
    gain is `sum(acceptance ** i for i in 0..n) / (1 + n * (draft_cost + verify_cost))`. If no
    number of drafts gains more than `MIN_GAIN`, the result is `(1.0, 0)`.
    """
    best, best_count, expected = MIN_GAIN, 0, 1.0
    for count in range(1, _MAX_DRAFTS + 1):
        expected += acceptance**count
        gain = expected / (1 + count * (draft_cost + verify_cost))
        if gain > best:
            best, best_count = gain, count
    return (best, best_count) if best_count else (1.0, 0)


def updated_acceptance(rate: float, proposed: int, accepted: int, weight: float) -> float:
    """Return a moving average of the acceptance after some drafts of one sequence were verified.

    Behind the first draft that was not accepted nothing is known of the others.
    """
    for hit in [1.0] * accepted + [0.0] * (accepted < proposed):
        rate += weight * (hit - rate)
    return rate
