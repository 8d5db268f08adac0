"""What recent requests say of the next one: how much work arrives, how far predictions are off."""

import math

_MEMORY = 5.0  # seconds after which work counts for a third
_SHORT, _RATE = 0.05, 0.05  # waits that say nothing, in seconds; the weight of one request


class Demand:
    """A running average over time. Work is in seconds of a machine that serves the base."""

    def __init__(self) -> None:
        self.value = 0.0
        self._at = 0.0

    def add(self, now: float, work: float) -> None:
        """Notes work that arrives at `now`, in seconds of any clock that only moves forward."""
        self.value *= math.exp(-max(0.0, now - self._at) / _MEMORY)
        self.value += work / _MEMORY
        self._at = now


class WaitBias:
    """What to multiply a predicted wait with, learned from how long requests then waited.

    Predictions rest on how long answers are thought to be, and are off by that.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def learn(self, predicted: float, waited: float) -> None:
        """`predicted` as it was multiplied then; both in seconds."""
        if predicted > _SHORT:
            ratio = min(max(waited / predicted, 0.25), 4.0)
            self.factor = min(max(self.factor * ratio**_RATE, 0.25), 4.0)
