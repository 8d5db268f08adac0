"""The base's weights in 4 or 8 bits, laid out for the native kernels."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.architecture import Shape
from server.engine.backends.native.head_screening import Preview
from server.engine.backends.native.packing import (
    BLOCK,
    Bits,
    Codes,
    PackedMatrix,
    error,
    pack,
    quantise,
)
from server.engine.backends.native.source_precision import is_held, mostly_4bit
from server.engine.backends.pytorch.linear import DenseLinear
from server.engine.backends.pytorch.weights import BaseWeights, LayerWeights, Norm

log = logging.getLogger(__name__)

_ROWS = 64  # of a matrix, to tell whether 4 bits hold it


@dataclass(slots=True)
class PackedLayer:
    """One layer; `gate_up` holds 16 gates, their 16 ups, and so on."""

    qkv: PackedMatrix
    o: PackedMatrix
    gate_up: PackedMatrix
    down: PackedMatrix
    norms: dict[str, Tensor]
    rope: str | None
    window: int | None


@dataclass(slots=True)
class PackedWeights:
    """Everything that the kernels read of a base. `errors` are relative, by kind of matrix."""

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
    preview: Preview | None = None
    dtype: torch.dtype = torch.bfloat16  # of the cache
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def rope_kinds(self) -> list[str | None]:
        """Of each layer."""
        return [layer.rope for layer in self.layers]

    def tensors(self) -> list[Tensor]:
        """Every resident weight tensor, tied ones once."""
        found = [*self.embed.tensors(), *self.head.tensors(), self.final_norm]
        found += [] if self.preview is None else self.preview.tensors()
        for layer in self.layers:
            for part in (layer.qkv, layer.o, layer.gate_up, layer.down):
                found += part.tensors()
            found += layer.norms.values()
        return list({t.data_ptr(): t for t in found}.values())


def pack_weights(weights: BaseWeights, bits: Bits, keep: bool = False) -> PackedWeights:
    """Packs an fp32 base; its dense matrices are released layer by layer.

    With `keep`, and where the source holds most matrices in 4 bits, 4 bits are only for matrices
    that they hold exactly. All others, such as those that reordering neurons has spoilt, have 8.
    """
    packer = _Packer(bits, weights, keep)
    layers = [packer.layer(layer) for layer in weights.layers]
    head = packer.matrix("head", weights.head.weight, weights.head.bias)
    tied = weights.embed.data_ptr() == weights.head.weight.data_ptr()
    embed = head if tied else packer.matrix("embedding", weights.embed, None)
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


def round_weights(weights: BaseWeights, bits: Bits, keep: bool = False) -> BaseWeights:
    """The same base with the values that packing would give it, for PyTorch to compute with."""
    packer = _Packer(bits, weights, keep)
    tied = weights.embed.data_ptr() == weights.head.weight.data_ptr()
    for layer in weights.layers:
        for part in (layer.qkv, layer.o, layer.gate, layer.up, layer.down):
            part.weight.copy_(packer.codes(part.weight).values())
    weights.head.weight.copy_(packer.codes(weights.head.weight).values())
    if not tied:
        weights.embed.copy_(packer.codes(weights.embed).values())
    return weights


class _Packer:
    def __init__(self, bits: Bits, weights: BaseWeights, keep: bool) -> None:
        self._wanted = bits
        self._keep = bits == 4 and (keep or mostly_4bit(_matrices(weights)))
        self.errors: dict[str, float] = {}
        self._found: dict[Bits, dict[str, list[float]]] = {}

    def matrix(
        self, kind: str, weight: Tensor, bias: Tensor | None, input_major: bool = False
    ) -> PackedMatrix:
        codes = self.codes(weight)
        relative = error(codes, weight)
        self.errors[kind] = max(self.errors.get(kind, 0.0), relative)
        self._found.setdefault(codes.bits, {}).setdefault(kind, []).append(relative)
        return pack(codes, bias, input_major)

    def summary(self) -> str:
        """How many matrices have 4 and 8 bits, and the largest relative error of each kind."""
        return ", ".join(
            f"{sum(map(len, kinds.values()))} in {bits} bits ("
            + ", ".join(f"{kind} {max(errors):.1g}" for kind, errors in kinds.items())
            + ")"
            for bits, kinds in sorted(self._found.items())
        )

    def layer(self, layer: LayerWeights) -> PackedLayer:
        norms = {
            "attention_norm": layer.attention_norm,
            "mlp_norm": layer.mlp_norm,
            "attention_out_norm": layer.attention_out_norm,
            "mlp_out_norm": layer.mlp_out_norm,
            "qk_norm": layer.qk_norm,
        }
        gate_up, bias = interleaved(layer.gate, layer.up)
        packed = PackedLayer(
            qkv=self.matrix("qkv", layer.qkv.weight, layer.qkv.bias),
            o=self.matrix("o", layer.o.weight, layer.o.bias, input_major=True),
            gate_up=self.matrix("gate and up", gate_up, bias),
            down=self.matrix("down", layer.down.weight, layer.down.bias, input_major=True),
            norms={name: _floats(norm) for name, norm in norms.items() if norm is not None},
            rope=layer.rope,
            window=layer.window,
        )
        for part in (layer.qkv, layer.o, layer.gate, layer.up, layer.down):
            part.release()
        return packed

    def codes(self, weight: Tensor) -> Codes:
        """In as many bits as the matrix is kept in."""
        if self._keep and not is_held(weight, 4, _ROWS):
            return quantise(weight, 8)
        return quantise(weight, self._wanted)


def _matrices(weights: BaseWeights) -> Iterator[Tensor]:
    """Those of the layers."""
    for layer in weights.layers:
        for part in (layer.qkv, layer.o, layer.gate, layer.up, layer.down):
            yield part.weight


def _floats(norm: Norm) -> Tensor:
    return norm.weight.float().contiguous()


def interleaved(gate: DenseLinear, up: DenseLinear) -> tuple[Tensor, Tensor | None]:
    """Rows of 16 gates, then their 16 ups, and so on."""
    bias = None if gate.bias is None or up.bias is None else woven(gate.bias, up.bias)
    return woven(gate.weight, up.weight), bias


def woven(gates: Tensor, ups: Tensor) -> Tensor:
    """16 of one, 16 of the other, and so on; the last may be filled up with zeros."""
    rows = -len(gates) % BLOCK
    sides = [F.pad(t, (0, 0) * (t.dim() - 1) + (0, rows)) for t in (gates, ups)]
    return torch.stack([t.unflatten(0, (-1, BLOCK)) for t in sides], dim=1).flatten(0, 2)
