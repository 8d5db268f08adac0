"""A coarse copy of the head, by which the likeliest token is found without reading all of the head.

As SVD-softmax (Shim et al., 2017) does with low ranks: look at everything roughly, then only at
what may win. Roughly means in 4 bits of a head in 8. How far that is off is a sum of hundreds of
rounding errors, and with `_SURE` of its standard deviations nothing that may win is left out.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from server.engine.packed.packing import BLOCK, GROUP, Codes, PackedMatrix, pack, ranged4

_SURE = 8.0
_AT_ONCE = 2048  # outputs, so that what is in between stays in the processor's cache


@dataclass(frozen=True, slots=True)
class Preview:
    """An output's coarse value is off by less than `spread * sqrt(sum(doubt * squares))`.

    `spread` is by output, padded to whole blocks, `doubt` by block of inputs, as are the sums of
    their `squares`.
    """

    coarse: PackedMatrix
    spread: Tensor
    doubt: Tensor

    def tensors(self) -> list[Tensor]:
        """What is resident."""
        return [*self.coarse.tensors(), self.spread, self.doubt]


def preview(codes: Codes) -> Preview | None:
    """Of a head's codes; None if they are in 4 bits already."""
    if codes.bits == 4:
        return None
    parts = []
    for some, scale in zip(
        codes.codes.split(_AT_ONCE), codes.scales.float().split(_AT_ONCE), strict=True
    ):
        rounded, scales, lows, error = ranged4(some.unflatten(1, (-1, GROUP)) * scale[..., None])
        parts.append((rounded.flatten(1).to(torch.uint8), scales, lows, error))
    found, scales, lows, errors = (torch.cat(part) for part in zip(*parts, strict=True))
    rough = Codes(4, found, scales, lows, codes.inputs)
    squares = errors / GROUP  # [outputs, input blocks]
    by_block = squares.mean(0)
    spread = (squares.mean(1) / by_block.mean().clamp_min(1e-30)).sqrt()
    return Preview(
        pack(rough),
        F.pad(spread, (0, -len(spread) % BLOCK)).contiguous(),
        (_SURE**2 * by_block).contiguous(),
    )
