"""Whether variants lose in production what their table says, and what to expect of them if not."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, stdev

log = logging.getLogger(__name__)

_LEAST, _WINDOW = 20, 200  # answers that a verdict needs, and that it looks back on
_Z95 = 1.96
_SLACK, _FLOOR = 1.25, 0.01
"""Other text than the table's loses otherwise: so much more, or so many nats, is no surprise."""


class QualityGuard:
    """A guard over the measured losses of variants, in nats per token.

    A variant is distrusted when the 95 % interval of its answers' mean loss lies above what the
    table allows for; its mean is then what is expected of it. It is trusted again when the mean is
    back within the bound.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        self._expected = expected
        self._seen: dict[str, deque[float]] = {}
        self._distrusted: set[str] = set()

    def observe(self, variant: str, loss: float) -> None:
        """One answer's mean loss per token, as the base measured it."""
        seen = self._seen.setdefault(variant, deque(maxlen=_WINDOW))
        seen.append(loss)
        if variant not in self._expected or len(seen) < _LEAST:
            return
        bound = max(_SLACK * self._expected[variant], self._expected[variant] + _FLOOR)
        mean = fmean(seen)
        low = mean - _Z95 * stdev(seen) / math.sqrt(len(seen))
        if low > bound and variant not in self._distrusted:
            self._distrusted.add(variant)
            log.warning(
                "variant %s loses %.3f nats a token in production, its table says %.3f; the "
                "measured loss is used from now on",
                variant, mean, self._expected[variant],
            )  # fmt: skip
        elif mean <= bound and variant in self._distrusted:
            self._distrusted.discard(variant)
            log.warning("variant %s is back within what its table says", variant)

    def is_trusted(self, variant: str) -> bool:
        """Whether the table is believed."""
        return variant not in self._distrusted

    def loss_correction(self, variant: str) -> float:
        """What to add to the loss that the table predicts; 0 while it is believed."""
        if variant not in self._distrusted:
            return 0.0
        return max(0.0, fmean(self._seen[variant]) - self._expected[variant])
