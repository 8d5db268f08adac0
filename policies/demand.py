"""What recent requests say of the next one: how much work arrives, how far predictions are off."""

import math
from collections import deque

_MEMORY = 5.0  # seconds after which work counts for a third
_LEAST = 1.5  # seconds of arrivals that say something
_RECENT = 100  # requests that another one's size is compared with
_FIRST_LENGTH, _FORGETS = 128.0, 0.03
_SHORT, _RATE = 0.05, 0.05  # waits that say nothing, in seconds; the weight of one request


class Demand:
    """A running average since the machine was last idle. Work is in seconds of serving the base."""

    def __init__(self) -> None:
        self.value = 0.0
        self._work = 0.0  # what arrived, forgotten by and by
        self._at = self._since = -math.inf

    def add(self, now: float, work: float, idle: bool = False) -> None:
        """Notes work that arrives at `now`, in seconds of any clock that only moves forward.

        An `idle` machine has met all earlier demand, which is forgotten.
        """
        if idle or self._since == -math.inf:
            self._work, self._since = 0.0, now
        else:
            self._work *= math.exp((self._at - now) / _MEMORY) if now > self._at else 1.0
        self._work += work
        self._at = now
        # After a short time there is less to forget.
        since = now - self._since
        seen = 1 - math.exp(-(since if since > _LEAST else _LEAST) / _MEMORY)
        self.value = self._work / (_MEMORY * seen)


class Sizes:
    """How large recent requests were, in tokens to read and to write."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque(maxlen=_RECENT)

    def add(self, tokens: int) -> None:
        """Notes a request that arrives."""
        self._recent.append(tokens)

    def rank(self, tokens: int) -> float:
        """The share of all these tokens that is in smaller requests, and in half of equal ones."""
        total = smaller = equal = 0
        for one in self._recent:
            total += one
            if one < tokens:
                smaller += one
            elif one == tokens:
                equal += one
        return (smaller + equal / 2) / total if total else 1.0


class WaitBias:
    """What to multiply a predicted wait with, learned from how long requests then waited.

    Predictions rest on how long answers are thought to be, and are off by that.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def learn(self, predicted: float, waited: float) -> None:
        """`predicted` as it was multiplied then; both in seconds."""
        if predicted > _SHORT:
            self.factor = _bounded(self.factor * _bounded(waited / predicted) ** _RATE)


def _bounded(factor: float) -> float:
    if factor < 0.25:
        return 0.25
    return factor if factor < 4.0 else 4.0


class AnswerLength:
    """How many tokens answers have: a running mean that forgets, quick to leave its first guess."""

    def __init__(self) -> None:
        self.value = _FIRST_LENGTH
        self._seen = 1

    def learn(self, tokens: int) -> None:
        """One answer's."""
        self._seen += 1
        self.value += max(1 / self._seen, _FORGETS) * (tokens - self.value)
