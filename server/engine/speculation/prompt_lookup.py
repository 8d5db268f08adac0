"""Lossless speculation: guess the next tokens from the text so far, verify them in one step.

Prompt lookup: if the last tokens stood in the text before, what followed then is proposed now. The
model samples every position as it would have anyway, and what it sampled is what is written: a
guess that it does not confirm costs a row of a step and changes nothing.
"""

from dataclasses import dataclass, field

_SIZES = (3, 2)  # tokens that must match, the longest first
_MOST = 6  # guesses at a time
_PROBE = 32  # written tokens between single guesses while guessing does not pay
WORTH = 1.05  # expected tokens a second over those without guesses


@dataclass(slots=True)
class StepCost:
    """Seconds of a decode step as `fixed + rows * per_row`, from recent steps."""

    _decay: float = 0.98
    _sums: list[float] = field(default_factory=lambda: [0.0] * 5)  # 1, rows, rows^2, s, rows * s

    def observe(self, rows: int, seconds: float) -> None:
        """One decode step of `rows` rows."""
        new = (1.0, rows, rows * rows, seconds, rows * seconds)
        self._sums = [self._decay * old + add for old, add in zip(self._sums, new, strict=True)]

    def share(self, rows: int) -> float:
        """What one further row for each of `rows` costs, over what their step costs.

        Until steps of different sizes were seen, a tenth a row is assumed.
        """
        count, x, xx, y, xy = self._sums
        spread = count * xx - x * x
        if count < 4 or spread < 0.5 * count:
            return min(1.0, 0.1 * rows)
        per_row = max(0.0, (count * xy - x * y) / spread)
        whole = (y - per_row * x) / count + per_row * rows
        return min(1.0, per_row * rows / whole) if whole > 0 else 1.0


class Drafts:
    """The guesses for one sequence, and how often they came true."""

    def __init__(self) -> None:
        self.proposed = 0
        self.accepted = 0
        self._rate = 0.6  # hopeful at first
        self._noted = 0
        self._after: dict[tuple[int, ...], int] = {}
        self._since = 0

    def propose(self, tokens: list[int], share: float, most: int) -> list[int]:
        """Up to `most` tokens that may follow `tokens`; none while guessing does not pay.

        `share` is what a guess costs, over a step. `tokens` only ever grows.
        """
        self._read(tokens)
        self._since += 1
        wanted = min(most, worth(self._rate, share)[1])
        if wanted == 0 and most and self._since >= _PROBE:
            wanted = 1
        at = self._found(tokens)
        if wanted == 0 or at is None:
            return []
        self._since = 0
        return _continued(tokens, at, wanted)

    def promising(self, tokens: list[int], share: float) -> bool:
        """Whether `propose` would guess more than now and then."""
        self._read(tokens)
        return worth(self._rate, share)[1] > 0 and self._found(tokens) is not None

    def verified(self, proposed: int, accepted: int, own: bool = True) -> None:
        """What became of the latest guesses, `own` ones or a variant's."""
        self.proposed += proposed
        self.accepted += accepted
        if not own:
            return
        for hit in [1.0] * accepted + [0.0] * (accepted < proposed):
            self._rate += 0.15 * (hit - self._rate)

    def _found(self, tokens: list[int]) -> int | None:
        """Where the text went on the last time that it ended like this."""
        for size in _SIZES:
            at = self._after.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if at is not None:
                return at
        return None

    def _read(self, tokens: list[int]) -> None:
        """Notes what followed each run of tokens; the very last ones have no successor yet."""
        for end in range(self._noted, len(tokens)):
            for size in _SIZES:
                if end >= size:
                    self._after[tuple(tokens[end - size : end])] = end
        self._noted = len(tokens)


def worth(rate: float, share: float, cost: float = 0.0) -> tuple[float, int]:
    """The highest gain in tokens a second, and with how many guesses; without any it is 1.

    A guess is right with probability `rate` if those before it were; making it costs `cost` and
    verifying it `share` of a step.
    """
    best, count, expected = WORTH, 0, 1.0
    for guesses in range(1, _MOST + 1):
        expected += rate**guesses
        gain = expected / (1 + guesses * (cost + share))
        if gain > best:
            best, count = gain, guesses
    return (best, count) if count else (1.0, 0)


def _continued(tokens: list[int], at: int, count: int) -> list[int]:
    """`count` tokens from `at` on; behind the end what repeats goes on repeating."""
    period = len(tokens) - at
    return [tokens[at + index % period] for index in range(count)]
