"""The base's weights in 4 or 8 bits, laid out for the native kernels."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.architecture import Shape
from server.engine.backends.native.head_screening import HeadScreen
from server.engine.backends.native.packing import (
    BLOCK,
    Bits,
    Codes,
    PackedMatrix,
    pack,
    quantise,
    relative_error,
)
from server.engine.backends.native.source_precision import is_exact, mostly_4bit
from server.engine.backends.pytorch.linear import SliceableLinear
from server.engine.backends.pytorch.weights import LayerWeights, PyTorchWeights, RMSNorm

log = logging.getLogger(__name__)

MAX_SCREENED_ROWS = 4
"""Rows for which the head is screened; for more rows reading it whole costs less."""

_ROWS = 64  # of a matrix, to tell whether 4 bits hold it


@dataclass(slots=True)
class PackedLayer:
    """One layer; `gate_up` holds 16 gates, their 16 ups, and so on.

    `norms` are fp32, by the names of `LayerWeights`. `rope` is the kind of rotary embedding and
    `window` the length of sliding attention in tokens.
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

    `rope[kind]` is cos and sin, fp32 `[positions, head_dim]`; the first half of sin has its sign
    changed. `errors` are the largest relative errors by kind of matrix. `dtype` is the default of
    the cache.
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
    activation: str
    context: int
    errors: dict[str, float]
    precision: str
    head_screen: HeadScreen | None = None
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

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


def pack_weights(weights: PyTorchWeights, bits: Bits, exact: bool = False) -> PackedWeights:
    """Pack an fp32 base in 4 or 8 bits. Its fp32 matrices are released layer by layer.

    In 4 bits, with `exact` or if most matrices are exact in 4 bits, only matrices that 4 bits hold
    exactly have 4 bits. All others have 8: for example those whose inputs were put in a new order,
    which breaks up the groups of the source.
    """
    packer = _Packer(bits, weights, exact)
    layers = [packer.layer(layer) for layer in weights.layers]
    head = packer.matrix("head", weights.head.weight, weights.head.bias)
    embed = head if weights.tied else packer.matrix("embedding", weights.embed, None)
    packed = PackedWeights(
        shape=weights.shape,
        layers=layers,
        embed=embed,
        head=head,
        final_norm=_floats(weights.final_norm),
        rope={kind: (c.float(), s.float()) for kind, (c, s) in weights.rope.items()},
        eps=weights.final_norm.eps,
        embed_scale=weights.embed_scale,
        softmax_scale=weights.softmax_scale,
        activation=weights.activation_name,
        context=weights.context,
        errors=packer.errors,
        precision=f"int{bits}",
    )
    size = sum(tensor.nbytes for tensor in packed.tensors())
    log.info("matrices: %s; %.0f MB resident", packer.summary(), size / 1e6)
    return packed


def round_weights(weights: PyTorchWeights, bits: Bits, exact: bool = False) -> PyTorchWeights:
    """Round an fp32 base, in place, to the values that `pack_weights` would give it."""
    packer = _Packer(bits, weights, exact)
    tied = weights.tied
    for layer in weights.layers:
        for part in layer.matrices:
            part.weight.copy_(packer.codes(part.weight).values())
    weights.head.weight.copy_(packer.codes(weights.head.weight).values())
    if not tied:
        weights.embed.copy_(packer.codes(weights.embed).values())
    return weights


class _Packer:
    """Packs matrices and notes the relative errors, by the kind of matrix."""

    def __init__(self, bits: Bits, weights: PyTorchWeights, exact: bool) -> None:
        self._bits = bits
        self._exact = bits == 4 and (exact or mostly_4bit(_matrices(weights)))
        self.errors: dict[str, float] = {}
        self._packed: dict[Bits, dict[str, list[float]]] = {}

    def matrix(
        self, kind: str, weight: Tensor, bias: Tensor | None, input_major: bool = False
    ) -> PackedMatrix:
        """Pack a matrix `[outputs, inputs]` with its bias `[outputs]`."""
        codes = self.codes(weight)
        error = relative_error(codes, weight)
        self.errors[kind] = max(self.errors.get(kind, 0.0), error)
        self._packed.setdefault(codes.bits, {}).setdefault(kind, []).append(error)
        return pack(codes, bias, input_major)

    def summary(self) -> str:
        """Say how many matrices have 4 and 8 bits, and the largest relative error of each kind."""
        return ", ".join(
            f"{sum(map(len, kinds.values()))} in {bits} bits ("
            + ", ".join(f"{kind} {max(errors):.1g}" for kind, errors in kinds.items())
            + ")"
            for bits, kinds in sorted(self._packed.items())
        )

    def layer(self, layer: LayerWeights) -> PackedLayer:
        """Pack one layer and release its matrices."""
        gate_up, bias = interleave_gate_up(layer.gate, layer.up)
        packed = PackedLayer(
            qkv=self.matrix("qkv", layer.qkv.weight, layer.qkv.bias),
            o=self.matrix("o", layer.o.weight, layer.o.bias, input_major=True),
            gate_up=self.matrix("gate and up", gate_up, bias),
            down=self.matrix("down", layer.down.weight, layer.down.bias, input_major=True),
            norms={name: _floats(norm) for name, norm in layer.norms.items()},
            rope=layer.rope,
            window=layer.window,
        )
        for part in layer.matrices:
            part.release()
        return packed

    def codes(self, weight: Tensor) -> Codes:
        """Quantise a matrix `[outputs, inputs]` in the bits that it is served in."""
        if self._exact and not is_exact(weight, 4, _ROWS):
            return quantise(weight, 8)
        return quantise(weight, self._bits)


def _matrices(weights: PyTorchWeights) -> Iterator[Tensor]:
    """Yield the weights `[outputs, inputs]` of all layers."""
    for layer in weights.layers:
        for part in layer.matrices:
            yield part.weight


def _floats(norm: RMSNorm) -> Tensor:
    return norm.weight.float().contiguous()


def interleave_gate_up(gate: SliceableLinear, up: SliceableLinear) -> tuple[Tensor, Tensor | None]:
    """Return weight `[2 * neurons, hidden]` and bias of 16 gates, their 16 ups, and so on."""
    bias = None if gate.bias is None or up.bias is None else interleave(gate.bias, up.bias)
    return interleave(gate.weight, up.weight), bias


def interleave(gates: Tensor, ups: Tensor) -> Tensor:
    """Return 16 of `gates`, 16 of `ups`, and so on, `[2 * neurons, ...]`.

    Both are `[neurons, ...]`; neurons are padded with zeros to a multiple of 16.
    """
    rows = -len(gates) % BLOCK
    sides = [F.pad(t, (0, 0) * (t.dim() - 1) + (0, rows)) for t in (gates, ups)]
    return torch.stack([t.unflatten(0, (-1, BLOCK)) for t in sides], dim=1).flatten(0, 2)
