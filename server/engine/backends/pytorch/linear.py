"""A linear layer of which a range of outputs or inputs can be used without copying."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

# For a few fp32 rows oneDNN reads a contiguous matrix 1.1 to 1.5 times as fast as the BLAS behind
# `F.linear` does on AVX2. It copies strided matrices, so those stay with BLAS.
_MAX_ONEDNN_ROWS = 8
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _suits_onednn(weight: Tensor) -> bool:
    return weight.is_contiguous() and weight.dtype == torch.float32 and weight.device.type == "cpu"


class SliceableLinear:
    """`y = x W^T + b`, or the part of it for a range of outputs or of inputs.

    `weight` is `[outputs, inputs]`, `bias` `[outputs]` or None. A slice is a view of the same
    storage. Slices are cached, since a decode step needs the same few ranges thousands of times.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias
        self._uses_onednn = _ONEDNN and _suits_onednn(weight)
        self._slices: dict[tuple[str, int, int], SliceableLinear] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Return `[rows, outputs]` for `x` `[rows, inputs]`, in the dtype of the weight."""
        if self._uses_onednn and x.shape[0] <= _MAX_ONEDNN_ROWS:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def outputs(self, low: int, high: int) -> "SliceableLinear":
        """Return the part that computes outputs `low..high`."""
        if (low, high) == (0, self.weight.shape[0]):
            return self
        key = ("out", low, high)
        if key not in self._slices:
            bias = None if self.bias is None else self.bias[low:high]
            self._slices[key] = SliceableLinear(self.weight[low:high], bias)
        return self._slices[key]

    def inputs(self, low: int, high: int) -> "SliceableLinear":
        """Return the part that reads inputs `low..high`; only the one from 0 on has the bias."""
        if (low, high) == (0, self.weight.shape[1]):
            return self
        key = ("in", low, high)
        if key not in self._slices:
            bias = self.bias if low == 0 else None
            self._slices[key] = SliceableLinear(self.weight[:, low:high], bias)
        return self._slices[key]

    def tensors(self) -> list[Tensor]:
        """Return the weight and the bias, if there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]
