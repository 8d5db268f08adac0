"""A coarse copy of the head, with which tokens are drawn without reading all of the head.

As in SVD-softmax (Shim et al., 2017, "SVD-Softmax: Fast Softmax Approximation on Large Vocabulary
Neural Networks", NeurIPS), all logits are computed roughly and only the candidates exactly. Here
the rough copy has few bits: 8 or 4 for the inputs that matter most, 2 for the others. The error of
a rough logit is a sum of hundreds of rounding errors. Candidates are all tokens that may be drawn
if no error exceeds `_DEVIATIONS` standard deviations, or the largest possible error of one input.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from server.engine.backends.native.packing import BLOCK, GROUP, Codes, PackedRows

_DEVIATIONS = 7.0
_WORST_FACTOR = 1.5  # the largest error of one input, and something for all other inputs
_PLANE_SHARES = {4: 1 / 18, 2: 5 / 18}  # of input blocks, by planes of 2 bits; the others have one
_STEPS = {4: 0.0308, 2: 0.3352, 1: 0.9957}  # optimal for normal numbers (Max, 1960)
_SAMPLED = 2048  # outputs from which means and variances are taken
_CHUNK = 128  # outputs at a time, so that intermediate results stay in the processor's cache


@dataclass(frozen=True, slots=True)
class HeadScreen:
    """The coarse copy, as the kernels read it.

    With `z` the inputs in their new `order` times `factor`, an output's coarse value is
    `mean . x + scale * (codes - centre) . z`. Its error is less than `spread` times the root of
    `sum(code_error * z^2 + input_error * (z - rounded z)^2)` over its input blocks, or less than
    the largest of `max_error * z`, where one input dominates. `mean`, `order` and `factor` are
    `[inputs]`, `scale` and `spread` `[outputs]`, `planes` and the three errors `[input blocks]`,
    `data` bytes.
    """

    data: Tensor
    planes: Tensor
    order: Tensor
    factor: Tensor
    mean: Tensor
    scale: Tensor
    spread: Tensor
    code_error: Tensor
    input_error: Tensor
    max_error: Tensor

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor, in the order of the kernels' structure."""
        return [getattr(self, field.name) for field in fields(self)]


def build_head_screen(head: Codes | PackedRows, hidden: Tensor) -> HeadScreen:
    """Build the coarse copy of a head for inputs like `hidden`, fp32 `[any, inputs]`.

    The mean over all outputs does not change which output is the highest, so it is not coded.
    """
    outputs, inputs = head.shape  # padded
    sample = torch.cat([values for _, values in _chunks(head, max(1, outputs // _SAMPLED))])
    mean, variance = sample.mean(0), sample.var(0, correction=0)
    energy = F.pad(hidden.float().square().mean(0), (0, inputs - hidden.shape[1]))
    order = (variance * energy).argsort(descending=True)
    planes = _planes(inputs // GROUP)
    step = torch.tensor([_STEPS[count] for count in planes]).repeat_interleave(GROUP)
    factor = variance.sqrt()[order] * step
    highest = torch.tensor([4.0**count - 1 for count in planes]).repeat_interleave(GROUP)
    # Written in place: small results that stay between large ones that go would leave holes.
    blocks = -(-outputs // BLOCK)
    data = torch.empty(blocks, sum(planes) * GROUP * BLOCK // 4, dtype=torch.uint8)
    scales = torch.zeros(blocks * BLOCK)
    squared_errors = torch.empty(outputs, len(planes))
    sizes, max_error = torch.zeros(len(planes)), torch.zeros(len(planes))
    for first, chunk in _chunks(head):
        wanted = (chunk - mean)[:, order] / factor.clamp_min(1e-30)
        scale = (wanted * step).square().mean(1, keepdim=True).sqrt()
        coarse = (wanted / scale.clamp_min(1e-30) + highest / 2).round()
        coarse = coarse.clamp_min(0).minimum(highest)
        coded = (coarse - highest / 2) * scale
        error = (coded - wanted).unflatten(1, (-1, GROUP))
        packed = _packed(coarse.to(torch.uint8), planes)
        data[first // BLOCK :][: len(packed)] = packed
        scales[first : first + len(chunk)] = scale[:, 0]
        squared_errors[first : first + len(chunk)] = error.square().mean(2)
        max_error = max_error.maximum(error.abs().amax((0, 2)))
        sizes += coded.square().unflatten(1, (-1, GROUP)).mean(2).sum(0)
    mean_error = squared_errors.mean(0)
    spread = (squared_errors / mean_error.clamp_min(1e-30)).mean(1).sqrt()
    return HeadScreen(
        data.flatten(),
        torch.tensor(planes, dtype=torch.int32),
        order.to(torch.int32),
        factor,
        mean,
        scales,
        F.pad(spread, (0, -outputs % BLOCK)),
        _DEVIATIONS**2 * mean_error,
        _DEVIATIONS**2 * sizes / outputs,
        _WORST_FACTOR * max_error,
    )


def _chunks(head: Codes | PackedRows, every: int = 1) -> Iterator[tuple[int, Tensor]]:
    """Yield the values of every `every`-th output, some at a time, and which is the first.

    They are fp32 `[up to _CHUNK, inputs]`, with zeros for padded inputs.
    """
    outputs, inputs = head.shape
    for first in range(0, outputs, _CHUNK * every):
        codes = head.rows(slice(first, min(outputs, first + _CHUNK * every), every))
        yield first, replace(codes, inputs=inputs).values()


def _planes(blocks: int) -> list[int]:
    """Return the number of planes of 2 bits of each input block."""
    counts = {planes: max(1, round(share * blocks)) for planes, share in _PLANE_SHARES.items()}
    planes = [planes for planes, count in counts.items() for _ in range(count)]
    return (planes + [1] * blocks)[:blocks]


def _packed(codes: Tensor, planes: list[int]) -> Tensor:
    """Lay uint8 codes `[outputs, inputs]` out: output blocks, input blocks, planes, two lines.

    Returns `[output blocks, bytes of one]`.

    A line holds 16 inputs of 16 outputs; the first plane has the codes' upper bits. Inputs
    i, 4 + i, 8 + i and 12 + i of an output share byte i, from the lower bits on.
    """
    padded = F.pad(codes, (0, 0, 0, -len(codes) % BLOCK))
    # Four inputs in a word: [output blocks, 16, input blocks, lines, 4]
    words = padded.view(torch.int32).unflatten(0, (-1, BLOCK)).unflatten(2, (-1, 2, 4))
    parts, first = [], 0
    for count in sorted(set(planes), reverse=True):  # as they come
        some = words[:, :, first : first + planes.count(count)]
        first += planes.count(count)
        lines = []
        for plane in reversed(range(count)):
            two = some >> 2 * plane & 0x03030303
            byte = two[..., 0] | two[..., 1] << 2 | two[..., 2] << 4 | two[..., 3] << 6
            lines.append(byte.permute(0, 2, 3, 1))
        parts.append(torch.stack(lines, dim=2).flatten(1))
    return torch.cat(parts, dim=1).view(torch.uint8)
