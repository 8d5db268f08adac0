"""What a profile says of a reader: how long it reads, what it loses, what it still finds."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pruners.support.validation import EXACT, Count, Finite, Positive, Share, Size


class ReadingTime(NamedTuple):
    """The time of reading over that by the base: `rate + fixed / tokens`, at most 1.

    Some tokens of every prompt are read in full, hence `fixed`, in tokens.
    """

    rate: float
    fixed: float

    def share(self, tokens: int) -> float:
        """Return the share for a prompt of `tokens`."""
        share = self.rate + self.fixed / tokens if tokens else 1.0
        return share if share < 1.0 else 1.0


IN_FULL = ReadingTime(1.0, 0.0)
"""The time of reading by the base."""


@dataclass(frozen=True, slots=True)
class ReaderProfile:
    """A reader's measurements.

    `seconds` is the time to read a prompt over that by the base, by the prompt's tokens. `loss`, in
    nats per token of the answer, is by the fewest tokens of the prompts that it was measured on: it
    holds up to the next entry. `tasks` is the share of right answers by reading task. `keeps_tasks`
    says whether the reader finds what the base finds.
    """

    name: str
    seconds: dict[Size, Positive]
    loss: dict[Count, Finite]
    tasks: dict[str, Share]
    keeps_tasks: bool
    __pydantic_config__ = EXACT

    def time(self) -> ReadingTime:
        """Return the time that is fitted to `seconds` by least squares, with `fixed` >= 0."""
        tokens = np.array(sorted(self.seconds), float)
        shares = np.array([self.seconds[int(one)] for one in tokens])
        if len(tokens) > 1:
            fixed, rate = np.polyfit(1 / tokens, shares, 1)
            if fixed > 0 and rate > 0:
                return ReadingTime(float(rate), float(fixed))
        return ReadingTime(float(shares.mean()), 0.0)

    def loss_at(self, tokens: int) -> float:
        """Return the loss for a prompt of `tokens`, in nats per token."""
        below = [bound for bound in self.loss if bound <= tokens]
        return self.loss[max(below) if below else min(self.loss)]


def check_readers(readers: tuple[ReaderProfile, ...], variants: tuple[str, ...]) -> None:
    """Raise `ValueError` for readers that are not told apart or not measured."""
    names = [*variants, *(reader.name for reader in readers)]
    if len(set(names)) < len(names):
        raise ValueError("readers and variants must have different names")
    for reader in readers:
        if not reader.seconds or not reader.loss:
            raise ValueError(f"reader {reader.name} has no measured times or losses")
        if min(reader.loss.values()) < 0:
            raise ValueError(f"reader {reader.name} has a negative loss")
