"""The base's weights in 4 or 8 bits, laid out for the native kernels."""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pruners.architecture import Shape
from server.engine.backends.matrix import Projection
from server.engine.backends.native.head_screening import HeadScreen
from server.engine.backends.native.matrix_packer import MatrixPacker
from server.engine.backends.native.packing import Bits, PackedMatrix
from server.engine.backends.native.source_precision import source_bits
from server.engine.backends.pytorch.convert import ConvertedBase, convert_weights
from server.engine.backends.pytorch.rope import RopeFrequencies, rope_tables
from server.engine.backends.pytorch.weights import LayerParts, PyTorchWeights, RMSNorm
from server.engine.loading.stages import advance

log = logging.getLogger(__name__)

MAX_SCREENED_ROWS, MAX_SAMPLED_ROWS = 2, 8
"""Rows for which the head is screened: where only likeliest tokens are taken, and where any token
is sampled, whose noise takes long with and without. For more rows the whole head costs less."""

_LOG_SECONDS = 2.0  # between two lines about the progress


@dataclass(slots=True)
class PackedLayer:
    """One layer; `gate_up` holds 16 gates, their 16 ups, and so on.

    `norms` are those that the layer has, fp32, by the names of `LayerWeights`. `rope` is the kind
    of rotary embedding and `window` the length of sliding attention in tokens.
    """

    qkv: PackedMatrix
    o: PackedMatrix
    gate_up: PackedMatrix
    down: PackedMatrix
    norms: dict[str, Tensor]
    rope: str | None
    window: int | None

    def attention_tensors(self) -> list[Tensor]:
        """Return the tensors of `qkv` and `o`."""
        return [*self.qkv.tensors(), *self.o.tensors()]

    def mlp_tensors(self) -> list[Tensor]:
        """Return the tensors of `gate_up` and `down`."""
        return [*self.gate_up.tensors(), *self.down.tensors()]


@dataclass(slots=True)
class PackedWeights:
    """Everything that the kernels read of a base.

    `rope[kind]` is cos and sin, fp32 `[positions, rotated]`, computed from `frequencies`; the first
    half of sin has its sign changed. `residual_scale` is what a block's output is multiplied by
    before the residual sum. `errors` are the largest relative errors by kind of matrix. `dtype` is
    the default of the cache.
    """

    shape: Shape
    layers: list[PackedLayer]
    embed: PackedMatrix
    head: PackedMatrix
    final_norm: Tensor
    rope: dict[str | None, tuple[Tensor, Tensor]]
    eps: float
    embed_scale: float
    softmax_scale: float
    residual_scale: float
    activation: str
    context: int
    errors: dict[str, float]
    precision: str
    head_screen: HeadScreen | None = None
    frequencies: dict[str | None, RopeFrequencies] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def rotated(self) -> int:
        """Return the number of first features of a head to which rotary embedding is applied."""
        return next(iter(self.rope.values()))[0].shape[1]

    @property
    def rope_kinds(self) -> list[str | None]:
        """Return the kind of rotary embedding of each layer."""
        return [layer.rope for layer in self.layers]

    @property
    def supports_int8_cache(self) -> bool:
        """Return True: the kernels attend to keys and values in bf16 or int8."""
        return True

    @property
    def selects_pages(self) -> bool:
        """Return True, for a cache in bf16."""
        return True

    def head_tensors(self, rows: int) -> list[Tensor]:
        """Return the tensors that choosing the likeliest token of `rows` rows reads.

        Where the head is screened, little of the head itself is read besides.
        """
        if self.head_screen is not None and rows <= MAX_SCREENED_ROWS:
            return self.head_screen.tensors()
        return self.head.tensors()

    def tensors(self) -> list[Tensor]:
        """Return every resident weight tensor, tied ones once."""
        found = [*self.embed.tensors(), *self.head.tensors(), self.final_norm]
        found += [] if self.head_screen is None else self.head_screen.tensors()
        for layer in self.layers:
            found += [*layer.attention_tensors(), *layer.mlp_tensors(), *layer.norms.values()]
        return list({t.data_ptr(): t for t in found}.values())


def pack_weights(base: ConvertedBase, bits: Bits, exact: bool = False) -> PackedWeights:
    """Read a base and pack it in 4 or 8 bits, layer by layer.

    In 4 bits, with `exact` or if most matrices are exact in 4 bits, only matrices that 4 bits hold
    exactly have 4 bits. All others have 8: for example those whose inputs were put in a new order,
    which breaks up the groups of the source.
    """
    packer = MatrixPacker(bits, exact or _mostly_4(base, bits))
    head = packer.rows("head", base, base.head)
    layers = [_pack_layer(packer, layer) for layer in _logged(base)]
    embed = head if base.tied else packer.rows("embedding", base, base.located.embed)
    final_norm = base.final_norm()
    packed = PackedWeights(
        shape=base.shape,
        layers=layers,
        embed=embed,
        head=head,
        final_norm=_floats(final_norm),
        rope=rope_tables(base.frequencies, base.context, torch.float32),
        eps=final_norm.eps,
        embed_scale=base.embed_scale,
        softmax_scale=base.softmax_scale,
        residual_scale=base.residual_scale,
        activation=base.serving.activation,
        context=base.context,
        errors=packer.errors,
        precision=f"int{bits}",
        frequencies=base.frequencies,
    )
    size = sum(tensor.nbytes for tensor in packed.tensors())
    log.info("matrices: %s; %.0f MB resident", packer.summary(), size / 1e6)
    return packed


def round_weights(base: ConvertedBase, bits: Bits, exact: bool = False) -> PyTorchWeights:
    """Read a base in fp32, rounded to the values that `pack_weights` would give it."""
    packer = MatrixPacker(bits, exact or _mostly_4(base, bits))
    cpu = torch.device("cpu")
    return convert_weights(base, cpu, lambda matrix: packer.codes(matrix)[0].values())


def _mostly_4(base: ConvertedBase, bits: Bits) -> bool:
    return bits == 4 and source_bits(base.located, base.parameters).mostly_4


def _logged(base: ConvertedBase) -> Iterator[LayerParts[Projection]]:
    """Yield the layers; say every few seconds how many are done."""
    started = said = time.monotonic()
    for index, layer in enumerate(base.layers()):
        yield layer
        now, done = time.monotonic(), 100 * (index + 1) // base.shape.layers
        advance(done / 100)
        if now - said > _LOG_SECONDS:
            log.info("packing: %d %% of the layers in %.0f s", done, now - started)
            said = now


def _pack_layer(packer: MatrixPacker, layer: LayerParts[Projection]) -> PackedLayer:
    return PackedLayer(
        qkv=packer.matrix("qkv", layer.qkv),
        o=packer.matrix("o", layer.o, input_major=True),
        gate_up=packer.pair("gate and up", layer.gate, layer.up),
        down=packer.matrix("down", layer.down, input_major=True),
        norms={name: _floats(norm) for name, norm in layer.norms.items()},
        rope=layer.rope,
        window=layer.window,
    )


def _floats(norm: RMSNorm) -> Tensor:
    return norm.weight.float().contiguous()
