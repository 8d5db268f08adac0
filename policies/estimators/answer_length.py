"""How many tokens an answer will have."""

_FIRST_GUESS = 128.0
"""Tokens of an answer before any has been observed."""
_WEIGHT = 0.03
"""Weight of one answer in the running means."""
_MAX_LIMIT = 1024
"""Tokens. A larger limit says nothing about the length that the client has in mind."""


class AnswerLengthEstimator:
    """Predicts an answer's length from the largest length that its request allows (`max_tokens`).

    Some clients set the limit to the length they want, others set it far higher. A line through
    recent (limit, length) pairs covers both: weighted least squares, with exponentially falling
    weights and a slope between 0 and 1.
    """

    def __init__(self) -> None:
        self._limit = self._length = _FIRST_GUESS  # running means
        self._variance = self._covariance = 0.0  # of the limits, and of limits with lengths
        self._slope = 0.0
        self._count = 1

    def expected(self, limit: int) -> float:
        """Return the expected number of tokens of an answer that may have at most `limit`."""
        limit = limit if limit < _MAX_LIMIT else _MAX_LIMIT
        length = self._length + self._slope * (limit - self._limit)
        length = length if length > 1.0 else 1.0
        return length if length < limit else float(limit)

    def observe(self, limit: int, tokens: int) -> None:
        """Add an answer of `tokens` tokens that was allowed `limit`."""
        limit = limit if limit < _MAX_LIMIT else _MAX_LIMIT
        self._count += 1
        weight = 1 / self._count if self._count * _WEIGHT < 1 else _WEIGHT
        limit_error, length_error = limit - self._limit, tokens - self._length
        self._limit += weight * limit_error
        self._length += weight * length_error
        self._variance = (1 - weight) * (self._variance + weight * limit_error * limit_error)
        self._covariance = (1 - weight) * (self._covariance + weight * limit_error * length_error)
        slope = self._covariance / self._variance if self._variance > 0 else 0.0
        self._slope = min(max(slope, 0.0), 1.0)
