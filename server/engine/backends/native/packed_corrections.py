"""What variants add to a packed base, as the native kernels apply it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.correction import Correction, InputCorrection, LowRankCorrection, RefitCorrection
from pruners.variant import Block, Part
from server.engine.backends.native.packed_weights import PackedLayer, PackedWeights, woven
from server.engine.backends.native.packing import BLOCK, PackedMatrix, pack, quantise


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """What a variant has in front of a sub-block, as `native.h` has it."""

    norm: Tensor
    inner: PackedMatrix | None = None
    outer: PackedMatrix | None = None

    def tensors(self) -> list[Tensor]:
        """Every resident tensor of it."""
        return [self.norm, *_tensors(self.inner, self.outer)]


@dataclass(frozen=True, slots=True)
class PackedOwn:
    """What a variant has of its own in one sub-block, as `native.h` has it."""

    inner: PackedMatrix | None
    outer: PackedMatrix | None
    bias: Tensor
    replaces: bool = False
    entry: PackedEntry | None = None

    def tensors(self) -> list[Tensor]:
        """Every resident tensor of it."""
        entry = [] if self.entry is None else self.entry.tensors()
        return [self.bias, *_tensors(self.inner, self.outer), *entry]


def _tensors(*matrices: PackedMatrix | None) -> list[Tensor]:
    return [tensor for matrix in matrices if matrix is not None for tensor in matrix.tensors()]


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
        self._ranks: dict[tuple[int, int], tuple[PackedMatrix, PackedMatrix]] = {}

    def own(self, correction: Correction, layer: PackedLayer, part: Part) -> PackedOwn:
        shared = layer.o if part == "attention" else layer.down
        bias = self._biases.setdefault(id(correction.bias), correction.bias.float().contiguous())
        if isinstance(correction, RefitCorrection):
            if shared.bias is not None:
                bias = bias + shared.bias
            matrix = pack(quantise(correction.weight, shared.bits), input_major=True)
            return PackedOwn(matrix, None, bias, replaces=True)
        entry = None if correction.entry is None else self._entry(correction.entry, layer, part)
        inner, outer = self._low_rank(correction)
        return PackedOwn(inner, outer, bias, entry=entry)

    def _entry(self, entry: InputCorrection, layer: PackedLayer, part: Part) -> PackedEntry:
        norm = (layer.norms[f"{part}_norm"] * entry.norm.float()).contiguous()
        inner, outer = self._low_rank(entry, gated=part == "mlp")
        return PackedEntry(norm, inner, outer)

    def _low_rank(
        self, own: LowRankCorrection | InputCorrection, gated: bool = False
    ) -> tuple[PackedMatrix | None, PackedMatrix | None]:
        if own.rank == 0:
            return None, None
        key = (id(own.up), id(own.down))
        if key not in self._ranks:
            up = own.up.float()
            up = woven(*up.chunk(2)) if gated else F.pad(up, (0, 0, 0, -len(up) % BLOCK))
            self._ranks[key] = (pack(quantise(own.down, 8)), pack(quantise(up, 8)))
        return self._ranks[key]
