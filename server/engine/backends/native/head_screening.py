"""A coarse copy of the head, by which the likeliest token is found without reading all of the head.

As SVD-softmax (Shim et al., 2017) does with low ranks: look at everything roughly, then only at
what may win. Roughly means that inputs with much to say are held in 8 and 4 bits and the others in
2. How far that is off is a sum of hundreds of rounding errors, and with `_SURE` of its standard
deviations nothing that may win is left out; nor by the largest error of all in one input.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from server.engine.backends.native.packing import BLOCK, GROUP, Codes

_SURE = 7.0
_ALL = 1.5  # of the largest error in one input, for those in all others beside it
_SHARES = {4: 1 / 18, 2: 5 / 18}  # of input blocks, by planes of 2 bits; the others have one
_STEPS = {4: 0.0308, 2: 0.3352, 1: 0.9957}  # best for normal numbers (Max, 1960)
_AT_ONCE = 2048  # outputs, so that what is in between stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Preview:
    """What `TrimPreview` in `native/native.h` points at.

    With `z` the inputs in their new order times `factor`, an output's coarse value is
    `mean . x + scale * (codes - centre) . z`, off by less than `spread` times the root of
    `sum(doubt * squares of z + loss * squares of what rounding z loses)` over its input blocks, or
    than the largest of `worst * z`, where a single input has more to say than all others.
    """

    data: Tensor
    planes: Tensor
    order: Tensor
    factor: Tensor
    mean: Tensor
    scale: Tensor
    spread: Tensor
    doubt: Tensor
    loss: Tensor
    worst: Tensor

    def tensors(self) -> list[Tensor]:
        """What is resident."""
        return [getattr(self, field.name) for field in fields(self)]


def preview(codes: Codes, hidden: Tensor) -> Preview:
    """Of a head's codes of 8 bits, for inputs like `hidden`, `[any, inputs]`.

    Output values share a mean, which says nothing about which is the highest and is not coded.
    """
    outputs, inputs = codes.codes.shape  # padded
    some = torch.cat(list(_parts(codes, max(1, outputs // _AT_ONCE))))  # to centre and scale by
    mean, varied = some.mean(0), some.var(0, correction=0)
    energy = F.pad(hidden.float().square().mean(0), (0, inputs - hidden.shape[1]))
    order = (varied * energy).argsort(descending=True)
    planes = _planes(inputs // GROUP)
    step = torch.tensor([_STEPS[count] for count in planes]).repeat_interleave(GROUP)
    factor = varied.sqrt()[order] * step
    highest = torch.tensor([4.0**count - 1 for count in planes]).repeat_interleave(GROUP)
    data, scales, errors, sizes, worst = [], [], [], [], []
    for part in _parts(codes):
        wanted = (part - mean)[:, order] / factor.clamp_min(1e-30)
        scale = (wanted * step).square().mean(1, keepdim=True).sqrt()
        found = (wanted / scale.clamp_min(1e-30) + highest / 2).round()
        found = found.clamp_min(0).minimum(highest)
        coded = (found - highest / 2) * scale
        data.append(_packed(found.to(torch.uint8), planes))
        scales.append(scale[:, 0])
        off = (coded - wanted).unflatten(1, (-1, GROUP))
        errors.append(off.square().mean(2))
        worst.append(off.abs().amax((0, 2)))
        sizes.append(coded.square().unflatten(1, (-1, GROUP)).mean(2).sum(0))
    lost = torch.cat(errors)  # [outputs, input blocks]
    doubt = lost.mean(0)
    spread = (lost / doubt.clamp_min(1e-30)).mean(1).sqrt()
    return Preview(
        torch.cat(data),
        torch.tensor(planes, dtype=torch.int32),
        order.to(torch.int32),
        factor,
        mean,
        F.pad(torch.cat(scales), (0, -outputs % BLOCK)),
        F.pad(spread, (0, -outputs % BLOCK)),
        _SURE**2 * doubt,
        _SURE**2 * torch.stack(sizes).sum(0) / outputs,
        _ALL * torch.stack(worst).amax(0),
    )


def _parts(codes: Codes, every: int = 1) -> Iterator[Tensor]:
    """Values of some outputs after the other."""
    parts = (codes.codes[::every].split(_AT_ONCE), codes.scales[::every].split(_AT_ONCE))
    for some, scales in zip(*parts, strict=True):
        yield (some.unflatten(1, (-1, GROUP)) * scales.float()[..., None]).flatten(1)


def _planes(blocks: int) -> list[int]:
    counts = {planes: max(1, round(share * blocks)) for planes, share in _SHARES.items()}
    found = [planes for planes, count in counts.items() for _ in range(count)]
    return (found + [1] * blocks)[:blocks]


def _packed(found: Tensor, planes: list[int]) -> Tensor:
    """Codes `[outputs, inputs]` as bytes: output blocks, their input blocks, planes, two lines.

    A line holds 16 inputs of 16 outputs; the first plane has the codes' upper bits. Inputs
    i, 4 + i, 8 + i and 12 + i of an output share byte i, from the lower bits on.
    """
    grid = F.pad(found, (0, 0, 0, -len(found) % BLOCK)).unflatten(0, (-1, BLOCK))
    grid = grid.unflatten(2, (-1, GROUP)).transpose(1, 2)  # [output blocks, input blocks, 16, 32]
    lines = []
    for index, count in enumerate(planes):
        for plane in reversed(range(count)):
            four = (grid[:, index] >> 2 * plane & 3).unflatten(2, (2, 4, 4))
            byte = four[..., 0, :] | four[..., 1, :] << 2 | four[..., 2, :] << 4
            lines.append((byte | four[..., 3, :] << 6).transpose(1, 2).flatten(1))
    return torch.cat(lines, dim=1).flatten()
