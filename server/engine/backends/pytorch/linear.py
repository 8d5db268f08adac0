"""A matrix that can be used by prefix. The seam for packed weights."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# For a few fp32 rows oneDNN reads a contiguous matrix 1.1 to 1.5 times as fast as the BLAS behind
# `F.linear` does on AVX2; it copies strided ones, so those stay with BLAS.
_FEW = 8
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits_onednn(weight: Tensor) -> bool:
    return weight.is_contiguous() and weight.dtype == torch.float32 and weight.device.type == "cpu"


class DenseLinear:
    """`y = x W^T + b` over a range of outputs or inputs, without copying.

    `weight` is `[out, in]`, `bias` `[out]` or None. A slice is a view of the same storage; slices
    are kept, since a decode step asks for the same few ranges thousands of times.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self._few_rows = _ONEDNN and _suits_onednn(weight)
        self._slices: dict[tuple[str, int, int], DenseLinear] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """`x` is `[rows, in]`; returns `[rows, out]`."""
        if self._few_rows and x.shape[0] <= _FEW:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
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

    def to(self, device: torch.device) -> "DenseLinear":
        """The same on another device."""
        bias = self.bias
        return DenseLinear(self.weight.to(device), None if bias is None else bias.to(device))

    def release(self) -> None:
        """Frees the weights once they were packed."""
        self.weight = self.weight.new_empty(0)
        self._slices.clear()

    def tensors(self) -> list[Tensor]:
        """The tensors that this matrix reads."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
