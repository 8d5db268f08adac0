"""What recent requests say of the next one: how much work arrives, how far predictions are off."""

import math
from collections import deque

_MEMORY = 5.0  # seconds after which work counts for a third
_LEAST = 1.5  # seconds of arrivals that say something
_RECENT = 100  # requests that another one's size is compared with
_FIRST_LENGTH, _FORGETS = 128.0, 0.03
_LIMIT = 1024  # tokens; a client that allows more has no length in mind
_SHORT, _RATE = 0.05, 0.05  # waits that say nothing, in seconds; the weight of one request


class LoadEstimator:
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


class RequestSizes:
    """How much work recent requests were, in seconds of serving the base."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def add(self, work: float) -> None:
        """Notes a request that arrives."""
        self._recent.append(work)

    def rank(self, work: float) -> float:
        """The share of all this work that is in smaller requests, and in half of equal ones."""
        total = smaller = equal = 0.0
        for one in self._recent:
            total += one
            if one < work:
                smaller += one
            elif one == work:
                equal += one
        return (smaller + equal / 2) / total if total else 1.0


class WaitBiasEstimator:
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


class AnswerLengthEstimator:
    """How many tokens an answer will have, of the most that it may have.

    Some clients ask for what they want, others for far more: a line through recent answers, fitted
    by least squares that forget, lies where these are. Its slope is between 0 and 1.
    """

    def __init__(self) -> None:
        self._limit = self._length = _FIRST_LENGTH  # running means
        self._spread = self._shared = 0.0  # the limits' variance, and covariance with lengths
        self._slope = 0.0
        self._seen = 1

    def expected(self, limit: int) -> float:
        """Of an answer of at most so many tokens."""
        limit = limit if limit < _LIMIT else _LIMIT
        found = self._length + self._slope * (limit - self._limit)
        found = found if found > 1.0 else 1.0
        return found if found < limit else float(limit)

    def learn(self, limit: int, tokens: int) -> None:
        """An answer that was allowed `limit` tokens and had `tokens`."""
        limit = limit if limit < _LIMIT else _LIMIT
        self._seen += 1
        weight = 1 / self._seen if self._seen * _FORGETS < 1 else _FORGETS
        further, longer = limit - self._limit, tokens - self._length
        self._limit += weight * further
        self._length += weight * longer
        self._spread = (1 - weight) * (self._spread + weight * further * further)
        self._shared = (1 - weight) * (self._shared + weight * further * longer)
        slope = self._shared / self._spread if self._spread > 0 else 0.0
        self._slope = min(max(slope, 0.0), 1.0)
