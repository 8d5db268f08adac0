"""How far predicted waits in the queue are off."""

_MIN_PREDICTED = 0.05
"""Seconds. Shorter predictions are left out: their ratio to the measured wait is noise."""
_WEIGHT = 0.05
"""Weight of one request in the running geometric mean."""
_MIN_FACTOR, _MAX_FACTOR = 0.25, 4.0


class WaitBiasEstimator:
    """The factor that turns a predicted wait into the wait that was measured.

    A predicted wait depends on how long answers are expected to be, and is off where they are
    longer or shorter. `factor` is a running geometric mean of measured over predicted waits.
    """

    def __init__(self) -> None:
        self.factor = 1.0

    def observe(self, predicted: float, measured: float) -> None:
        """Compare a predicted wait, as it was corrected then, with the measured one, in seconds."""
        if predicted > _MIN_PREDICTED:
            self.factor = _clamp(self.factor * _clamp(measured / predicted) ** _WEIGHT)


def _clamp(factor: float) -> float:
    # Comparisons instead of min and max: the simulation calls this for every request.
    if factor < _MIN_FACTOR:
        return _MIN_FACTOR
    return factor if factor < _MAX_FACTOR else _MAX_FACTOR
