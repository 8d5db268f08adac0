"""What variants add to a packed base, as the native kernels apply it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.recovery import Correction, Entry, LowRank, Materialised
from pruners.variant import Block, Part
from server.engine.packed_weights import PackedLayer, PackedWeights, woven
from server.engine.packing import BLOCK, PackedMatrix, pack, quantise


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """What a variant has in front of a sub-block, as `native.h` has it."""

    norm: Tensor
    inner: PackedMatrix | None
    outer: Tensor | None  # fp16, [features / 16, rank, 16]
    rank: int

    def tensors(self) -> list[Tensor]:
        """Every resident tensor of it."""
        inner = [] if self.inner is None else self.inner.tensors()
        return [self.norm, *inner, *([] if self.outer is None else [self.outer])]


@dataclass(frozen=True, slots=True)
class PackedOwn:
    """What a variant has of its own in one sub-block, as `native.h` has it."""

    inner: PackedMatrix | None
    outer: Tensor | None  # fp16, [outputs / 16, rank, 16]
    bias: Tensor
    rank: int
    replaces: bool
    entry: PackedEntry | None = None

    def tensors(self) -> list[Tensor]:
        """Every resident tensor of it."""
        inner = [] if self.inner is None else self.inner.tensors()
        entry = [] if self.entry is None else self.entry.tensors()
        return [self.bias, *inner, *([] if self.outer is None else [self.outer]), *entry]


PackedOwnParts = dict[Block, dict[str, PackedOwn]]


def packed_own_parts(
    weights: PackedWeights, corrections: Mapping[str, Mapping[Block, Correction]]
) -> PackedOwnParts:
    """Corrections by block and variant. Tensors that variants share are resident once."""
    packer = _Packer()
    found: PackedOwnParts = {}
    for variant, blocks in corrections.items():
        for block, correction in blocks.items():
            made = packer.own(correction, weights.layers[block.layer], block.part)
            found.setdefault(block, {})[variant] = made
    return found


class _Packer:
    """Packs low ranks and biases, those that are one tensor once."""

    def __init__(self) -> None:
        self._biases: dict[int, Tensor] = {}
        self._ranks: dict[tuple[int, int], tuple[PackedMatrix, Tensor]] = {}

    def own(self, correction: Correction, layer: PackedLayer, part: Part) -> PackedOwn:
        shared = layer.o if part == "attention" else layer.down
        bias = self._biases.setdefault(id(correction.bias), correction.bias.float().contiguous())
        if isinstance(correction, Materialised):
            if shared.bias is not None:
                bias = bias + shared.bias
            matrix = pack(quantise(correction.weight, shared.bits), input_major=True)
            return PackedOwn(matrix, None, bias, 0, replaces=True)
        entry = None if correction.entry is None else self._entry(correction.entry, layer, part)
        inner, outer = self._low_rank(correction)
        return PackedOwn(inner, outer, bias, correction.rank, replaces=False, entry=entry)

    def _entry(self, entry: Entry, layer: PackedLayer, part: Part) -> PackedEntry:
        norm = (layer.norms[f"{part}_norm"] * entry.norm.float()).contiguous()
        inner, outer = self._low_rank(entry, gated=part == "mlp")
        return PackedEntry(norm, inner, outer, entry.rank)

    def _low_rank(
        self, own: LowRank | Entry, gated: bool = False
    ) -> tuple[PackedMatrix | None, Tensor | None]:
        if own.rank == 0:
            return None, None
        key = (id(own.up), id(own.down))
        if key not in self._ranks:
            up = own.up.float()
            up = woven(*up.chunk(2)) if gated else F.pad(up, (0, 0, 0, -len(up) % BLOCK))
            outer = up.half().unflatten(0, (-1, BLOCK)).transpose(1, 2).contiguous()
            self._ranks[key] = (pack(quantise(own.down, 8)), outer)
        return self._ranks[key]
