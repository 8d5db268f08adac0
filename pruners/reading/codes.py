"""Maps in 4 bits, as files hold them and as the native kernels multiply by them."""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP = 32
_HIGHEST = 15
_SMALLEST_SCALE = 2.0**-24  # the smallest number above 0 in fp16
_DAMPING = 0.01  # of the mean diagonal of E[x x^T]


@dataclass(frozen=True, slots=True)
class MapCodes:
    """The maps of one depth: `value = code * scale + minimum` for groups of 32 inputs.

    `codes` uint8 0..15 `[layers, 2 * kv, hidden]`, `scales` and `minima` fp16 `[layers, 2 * kv,
    groups]`, of which the last group may be shorter, and `bias` fp32 `[layers, 2 * kv]`.
    """

    codes: Tensor
    scales: Tensor
    minima: Tensor
    bias: Tensor

    def values(self) -> Tensor:
        """Return the maps that these codes stand for, fp32 `[layers, 2 * kv, hidden + 1]`."""
        hidden = self.codes.shape[-1]
        scales, minima = (
            part.float().repeat_interleave(GROUP, -1)[..., :hidden]
            for part in (self.scales, self.minima)
        )
        return torch.cat([self.codes * scales + minima, self.bias[..., None]], dim=-1)


def round_maps(weight: Tensor, moment: Tensor | None = None) -> MapCodes:
    """Round maps fp32 `[layers, 2 * kv, hidden + 1]` to codes.

    With `moment`, E[x x^T] of the features `[hidden + 1, hidden + 1]` up to a factor, what the
    rounding of an input does to the outputs is made up for by the inputs after it and by the bias
    (GPTQ, Frantar et al. 2022, arXiv 2210.17323). Without, each number goes to the nearest code.
    """
    layers, rows, size = weight.shape
    left = weight.detach().float().flatten(0, 1).T.contiguous()  # [hidden + 1, all rows]
    spread = _spread(moment, size).to(left)
    codes = torch.empty(size - 1, left.shape[1], dtype=torch.uint8, device=left.device)
    scales, minima = [], []
    for begin in range(0, size - 1, GROUP):
        end = min(begin + GROUP, size - 1)
        scale, minimum = _range(left[begin:end])
        scales.append(scale)
        minima.append(minimum)
        step, lowest = scale.float(), minimum.float()
        errors = torch.empty_like(left[begin:end])
        for i in range(begin, end):
            code = ((left[i] - lowest) / step).round().clamp(0, _HIGHEST)
            codes[i] = code.to(torch.uint8)
            errors[i - begin] = left[i] - (code * step + lowest)
            left[i:end] -= torch.outer(spread[i, i:end], errors[i - begin])
        left[end:] -= spread[begin:end, end:].T @ errors

    def by_layer(part: Tensor) -> Tensor:
        """From `[size, all rows]` to `[layers, rows, size]`."""
        return part.T.unflatten(0, (layers, rows)).contiguous()

    bias = left[-1].unflatten(0, (layers, rows)).clone()
    return MapCodes(
        by_layer(codes), by_layer(torch.stack(scales)), by_layer(torch.stack(minima)), bias
    )


def _range(group: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fp16 scale and minimum `[rows]` of a group `[inputs, rows]`."""
    minimum = group.amin(0).half()
    scale = (group.amax(0) - minimum.float()) / _HIGHEST
    return scale.clamp(min=_SMALLEST_SCALE).half(), minimum


def _spread(moment: Tensor | None, size: int) -> Tensor:
    """Return how much of an input's error each input after it takes up, `[size, size]`.

    It is 1 on the diagonal and 0 below. `moment` is that of `round_maps`.
    """
    if moment is None:
        return torch.eye(size)
    damped = moment.double()
    damped = damped + _DAMPING * damped.diagonal().mean() * torch.eye(size).to(damped)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    return upper / upper.diagonal()[:, None]


def pack_pairs(codes: Tensor) -> Tensor:
    """Put each code of a key and of its value, `[layers, 2 * kv, hidden]`, into one byte."""
    keys, values = codes.chunk(2, dim=1)
    return (keys | values << 4).contiguous()


def unpack_pairs(packed: Tensor) -> Tensor:
    """Return the codes of `pack_pairs`."""
    return torch.cat([packed & _HIGHEST, packed >> 4], dim=1)
