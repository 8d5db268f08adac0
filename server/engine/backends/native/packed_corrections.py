"""The corrections of variants in packed matrices, as the native kernels apply them."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.correction import Correction, InputCorrection, LowRankCorrection, RefitCorrection
from pruners.variant import Block, Part
from server.engine.backends.native.matrix_packer import interleave
from server.engine.backends.native.packed_weights import PackedLayer, PackedWeights
from server.engine.backends.native.packing import BLOCK, PackedMatrix, pack, quantise


@dataclass(frozen=True, slots=True)
class PackedInputCorrection:
    """The correction in front of a sub-block: a norm `[hidden]`, and a low-rank product.

    `inner` maps hidden states to the rank, `outer` from there to the outputs of the fused input
    projection.
    """

    norm: Tensor
    inner: PackedMatrix | None = None
    outer: PackedMatrix | None = None

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor."""
        return [self.norm, *_tensors(self.inner, self.outer)]


@dataclass(frozen=True, slots=True)
class PackedCorrection:
    """The correction of one `o` or `down`: `outer(inner(inputs)) + bias`.

    `bias` is fp32 `[hidden]`. With `replaces` it stands in the place of the shared columns, and
    `inner` is the whole matrix. `entry` is the correction in front of the sub-block.
    """

    inner: PackedMatrix | None
    outer: PackedMatrix | None
    bias: Tensor
    replaces: bool = False
    entry: PackedInputCorrection | None = None

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor."""
        entry = [] if self.entry is None else self.entry.tensors()
        return [self.bias, *_tensors(self.inner, self.outer), *entry]


def _tensors(*matrices: PackedMatrix | None) -> list[Tensor]:
    return [tensor for matrix in matrices if matrix is not None for tensor in matrix.tensors()]


PackedCorrections = dict[Block, dict[str, PackedCorrection]]
"""By block, then by the variant's name."""


def pack_corrections(
    weights: PackedWeights, corrections: Mapping[str, Mapping[Block, Correction]]
) -> PackedCorrections:
    """Pack corrections by variant and block. Tensors that variants share are resident once."""
    packer = _CorrectionPacker()
    packed: PackedCorrections = {}
    for variant, blocks in corrections.items():
        for block, correction in blocks.items():
            made = packer.pack(correction, weights.layers[block.layer], block.part)
            packed.setdefault(block, {})[variant] = made
    return packed


class _CorrectionPacker:
    """Packs corrections, and each low-rank product and each bias once."""

    def __init__(self) -> None:
        self._biases: dict[int, Tensor] = {}
        self._ranks: dict[tuple[int, int], tuple[PackedMatrix, PackedMatrix]] = {}

    def pack(self, correction: Correction, layer: PackedLayer, part: Part) -> PackedCorrection:
        """Pack the correction of one sub-block, with the bits of the shared matrix."""
        shared = layer.o if part == "attention" else layer.down
        bias = self._biases.setdefault(id(correction.bias), correction.bias.float().contiguous())
        if isinstance(correction, RefitCorrection):
            if shared.bias is not None:
                bias = bias + shared.bias
            matrix = pack(quantise(correction.weight, shared.bits), input_major=True)
            return PackedCorrection(matrix, None, bias, replaces=True)
        entry = None if correction.entry is None else self._entry(correction.entry, layer, part)
        inner, outer = self._low_rank(correction)
        return PackedCorrection(inner, outer, bias, entry=entry)

    def _entry(
        self, entry: InputCorrection, layer: PackedLayer, part: Part
    ) -> PackedInputCorrection:
        norm, of_base = entry.norm.float(), layer.norms.get(f"{part}_norm")
        norm = (norm if of_base is None else of_base * norm).contiguous()
        inner, outer = self._low_rank(entry, gated=part == "mlp")
        return PackedInputCorrection(norm, inner, outer)

    def _low_rank(
        self, product: LowRankCorrection | InputCorrection, gated: bool = False
    ) -> tuple[PackedMatrix | None, PackedMatrix | None]:
        """Pack `product.down` and `product.up`; `gated` says that `up` is of gate and up."""
        if product.rank == 0:
            return None, None
        key = (id(product.up), id(product.down))
        if key not in self._ranks:
            up = product.up.float()
            up = interleave(*up.chunk(2)) if gated else F.pad(up, (0, 0, 0, -len(up) % BLOCK))
            self._ranks[key] = (pack(quantise(product.down, 8)), pack(quantise(up, 8)))
        return self._ranks[key]
