"""A variant guesses what the base will write, and the base verifies: lossless, from one cache.

Self-speculative decoding (Zhang et al. 2023, arXiv 2309.08168). The variant's keys and values stand
where the base's will: verifying writes over them.
"""

from collections.abc import Mapping, Sequence

from pruners.artefact.table import Table
from pruners.variant import BASE, VariantSpec
from server.engine.backends.base import Segment
from server.engine.sequence import Sequence as Answer
from server.engine.speculation.prompt_lookup import WORTH, worth

_PROBE = 64  # steps between single guesses while guessing does not pay


class Drafter:
    """A variant that guesses, as long as that pays.

    `agreement` is how often its likeliest token is expected to be the base's, before any guess was
    verified, `cost` the time of its step over the base's.
    """

    def __init__(self, variant: VariantSpec, agreement: float, cost: float) -> None:
        self.variant = variant
        self._rate = agreement
        self._cost = cost
        self._since = 0

    def suits(self, answer: Answer, share: float) -> bool:
        """Whether the base writes the likeliest tokens here, and nothing cheaper can guess them."""
        cache = answer.cache
        return (
            answer.plain
            and answer.variant.name == BASE
            and cache is not None
            and cache.complete
            and not answer.drafts.promising(answer.history, share)
        )

    def count(self, share: float) -> int:
        """How many guesses are worth making now; `share` is what verifying one costs, in steps."""
        found = worth(self._rate, share, self._cost)[1]
        self._since = 0 if found else self._since + 1
        return 1 if self._since and self._since % _PROBE == 0 else found

    def verified(self, proposed: int, accepted: int) -> None:
        """What became of some guesses."""
        for hit in [1.0] * accepted + [0.0] * (accepted < proposed):
            self._rate += 0.05 * (hit - self._rate)

    def segments(
        self, answers: Sequence[Answer], guesses: Mapping[Answer, list[int]]
    ) -> list[Segment]:
        """The next token of each, by what is guessed so far. There is room for it."""
        found = []
        for answer in answers:
            assert answer.cache is not None
            latest = (guesses[answer] or answer.history)[-1]
            found.append(Segment([latest], answer.cache, self.variant))
        return found


def drafter(variants: Mapping[str, VariantSpec], table: Table) -> Drafter | None:
    """The variant that promises most by its measured agreement and bytes, if any pays."""
    gains = {
        name: worth(quality.agreement, 0.1, table.cost[name].bytes_read)[0]
        for name, quality in table.quality.items()
        if name in variants
    }
    name = max(gains, key=gains.__getitem__, default=BASE)
    if name == BASE or gains[name] <= WORTH:
        return None
    return Drafter(variants[name], table.quality[name].agreement, table.cost[name].bytes_read)
