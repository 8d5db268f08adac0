"""One vector for a whole prompt, made of its final hidden states."""

from enum import StrEnum

import torch
from torch import Tensor


class Pooling(StrEnum):
    """Which hidden states an embedding is made of: the mean of all, or the last one."""

    MEAN = "mean"
    LAST = "last"


class EmbeddingError(ArithmeticError):
    """The hidden states of a prompt are not finite numbers."""

    def __str__(self) -> str:
        return "the embedding of this prompt is not finite"


class HiddenPool:
    """Takes in a prompt's hidden states, part by part as they are computed."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._sum: Tensor | None = None
        self._last: Tensor | None = None
        self._rows = 0

    def add(self, first: int, hidden: Tensor) -> None:
        """Take in rows `[rows, hidden]`, the first of which is that of the token at `first`.

        After a preemption they come again. With `LAST`, only the last row of all need be right.
        """
        if self._pooling is Pooling.LAST:
            self._last = hidden[-1].float()
            return
        part = hidden.double().sum(0)
        self._sum = part if self._sum is None or first == 0 else self._sum + part
        self._rows = first + len(hidden)

    def vector(self) -> Tensor:
        """Return the embedding, fp32 `[hidden]` of length 1, on the CPU. Raise `EmbeddingError`."""
        pooled = self._last if self._sum is None else self._sum / self._rows
        assert pooled is not None
        vector = torch.nn.functional.normalize(pooled.double(), dim=0).float().cpu()
        if not bool(vector.isfinite().all()):
            raise EmbeddingError
        return vector
