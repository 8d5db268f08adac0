"""Whether choices lose more in production than their table says, and how much more."""

import logging
import math
import threading
from collections import deque
from collections.abc import Mapping
from statistics import fmean, stdev

log = logging.getLogger(__name__)

_MIN_ANSWERS, _WINDOW = 20, 200
"""Answers that are needed before a choice is distrusted, and that are looked back on."""
_Z95 = 1.96
_MAX_RATIO, _MAX_EXCESS = 1.25, 0.01
"""Allowed mean loss: this ratio to the table's, or this many nats more, whichever is larger. Other
text has other losses."""


class QualityGuard:
    """Compares measured losses of answers with the table's, in nats per token.

    They are by choice: a variant, or a variant and a reader such as `base+read-70`, whose losses
    in the table add up. A choice is distrusted when the 95 % confidence interval of its answers'
    mean loss lies above the allowed loss. Its predicted loss is then raised to that mean, until the
    mean is back within the allowed loss.

    Threads: any thread may call any method. The server calls `observe` with results that the
    shadow measured in the engine's thread, the rest in the event loop. `observe` holds a lock. The
    corrections are an immutable mapping that is replaced as a whole, so that readers need no lock.
    """

    def __init__(self, expected: Mapping[str, float]) -> None:
        """`expected` are the table's losses by choice."""
        self._lock = threading.Lock()  # of the two lines below
        self._expected = expected
        self._losses: dict[str, deque[float]] = {}
        self._corrections: Mapping[str, float] = {}  # of distrusted choices

    def expect(self, expected: Mapping[str, float]) -> None:
        """Take the table's losses by choice, of more choices than before."""
        with self._lock:
            self._expected = expected

    def observe(self, choice: str, loss: float) -> None:
        """Add one answer's mean loss per token, as the shadow measured it."""
        with self._lock:
            losses = self._losses.setdefault(choice, deque(maxlen=_WINDOW))
            losses.append(loss)
            expected = self._expected.get(choice)
            if expected is None or len(losses) < _MIN_ANSWERS:
                return
            allowed = max(_MAX_RATIO * expected, expected + _MAX_EXCESS)
            mean, trusted = fmean(losses), choice not in self._corrections
            low = mean - _Z95 * stdev(losses) / math.sqrt(len(losses))
            corrections = {k: v for k, v in self._corrections.items() if k != choice}
            if (trusted and low > allowed) or (not trusted and mean > allowed):
                corrections[choice] = max(0.0, mean - expected)
            self._corrections = corrections
        if trusted and choice in corrections:
            log.warning(
                "%s loses %.3f nats a token in production, its table says %.3f; the "
                "measured loss is used from now on",
                choice, mean, expected,
            )  # fmt: skip
        elif not trusted and choice not in corrections:
            log.warning("%s is back within what its table says", choice)

    def is_trusted(self, choice: str) -> bool:
        """Return whether the table's loss of a choice is used as it is."""
        return choice not in self._corrections

    def loss_correction(self, choice: str) -> float:
        """Return the nats per token to add to a predicted loss; 0 for a trusted choice."""
        return self._corrections.get(choice, 0.0)
