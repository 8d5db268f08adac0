"""What a profile says of a reader: how long it reads, what it loses, what it still finds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pruners.support.validation import EXACT, Finite, Positive, Share, Size


class ReadingTime(NamedTuple):
    """The time of reading over that in full: `rate + fixed / tokens`, at most 1.

    Some tokens of every prompt are read in full, hence `fixed`, in tokens.
    """

    rate: float
    fixed: float

    def share(self, tokens: int) -> float:
        """Return the share for a prompt of `tokens`."""
        share = self.rate + self.fixed / tokens if tokens else 1.0
        return share if share < 1.0 else 1.0


IN_FULL = ReadingTime(1.0, 0.0)
"""The time of reading without a reader."""


@dataclass(frozen=True, slots=True)
class ReaderProfile:
    """A reader's measurements.

    `seconds` is the time to read a prompt over that in full, by the prompt's tokens. `loss`, in
    nats per token of the answer, is by the most tokens of the prompts that it was measured on, and
    that of the last entry holds for longer ones. `tasks` is the share of right answers by reading
    task.
    """

    name: str
    seconds: dict[Size, Positive]
    loss: dict[Size, Finite]
    tasks: dict[str, Share]
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

    def losses(self, tokens: Sequence[int]) -> np.ndarray:
        """Return the loss for prompts of so many tokens, `[prompts]`, in nats per token."""
        bounds = sorted(self.loss)
        places = np.searchsorted(bounds, tokens).clip(max=len(bounds) - 1)
        found: np.ndarray = np.array([self.loss[bound] for bound in bounds])[places]
        return found


def check_readers(
    readers: Sequence[ReaderProfile],
    pairs: Sequence[tuple[str, str]],
    keep_tasks: Sequence[str],
    variants: Sequence[str],
) -> None:
    """Raise `ValueError` for readers that are not measured or that nothing tells apart.

    `pairs` are of a variant and a reader, `keep_tasks` are names of choices.
    """
    base, *others = variants
    names = [reader.name for reader in readers]
    if len({*variants, *names}) < len(variants) + len(names):
        raise ValueError("readers and variants must have different names")
    for reader in readers:
        if not reader.seconds or not reader.loss:
            raise ValueError(f"reader {reader.name} has no measured times or losses")
        if min(reader.loss.values()) < 0:
            raise ValueError(f"reader {reader.name} has a negative loss")
    for variant, name in pairs:
        if variant not in others or name not in names:
            raise ValueError(f"there is no pair of a variant {variant} and a reader {name}")
    choices = {*variants, *(f"{variant}+{name}" for variant, name in pairs)}
    choices |= {f"{base}+{name}" for name in names}
    unknown = sorted(set(keep_tasks) - choices)
    if unknown:
        raise ValueError(f"keep_tasks has {unknown[0]}, which is no choice")
