"""A matrix that can be used by prefix. The seam for packed weights."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


class DenseLinear:
    """`y = x W^T + b` over a range of outputs or inputs, without copying.

    `weight` is `[out, in]`, `bias` `[out]` or None. A slice is a view of the same storage; slices
    are kept, since a decode step asks for the same few ranges thousands of times.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self._slices: dict[tuple[str, int, int], DenseLinear] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """`x` is `[rows, in]`; returns `[rows, out]`."""
        return F.linear(x, self.weight, self.bias)

    def outputs(self, low: int, high: int) -> "DenseLinear":
        """The part that computes outputs `low..high`."""
        if (low, high) == (0, self.weight.shape[0]):
            return self
        key = ("out", low, high)
        if key not in self._slices:
            bias = None if self.bias is None else self.bias[low:high]
            self._slices[key] = DenseLinear(self.weight[low:high], bias)
        return self._slices[key]

    def inputs(self, low: int, high: int) -> "DenseLinear":
        """The part that reads inputs `low..high`. The bias goes with the part that starts at 0."""
        if (low, high) == (0, self.weight.shape[1]):
            return self
        key = ("in", low, high)
        if key not in self._slices:
            bias = self.bias if low == 0 else None
            self._slices[key] = DenseLinear(self.weight[:, low:high], bias)
        return self._slices[key]

    def tensors(self) -> list[Tensor]:
        """The tensors that this matrix reads."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
