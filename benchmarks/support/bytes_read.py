"""Bytes that a decode step reads."""

from collections.abc import Sequence

from pruners.variant import PARTS, Block, VariantSpec
from server.engine.backends.native.decoder import FEW
from server.engine.backends.native.packed_weights import PackedLayer, PackedWeights
from server.engine.backends.native.packing import PackedMatrix
from server.engine.backends.pytorch.linear import DenseLinear, nbytes
from server.engine.backends.pytorch.weights import LayerWeights
from server.engine.loading.load import LoadedModel


def step_bytes(model: LoadedModel, spec: VariantSpec, rows: int = 1, cached: int = 0) -> int:
    """Weights once, and the keys and values of every row."""
    weights = model.weights
    shape = weights.shape
    head = weights.head.tensors()
    if isinstance(weights, PackedWeights) and weights.preview is not None and rows <= FEW:
        head = weights.preview.tensors()  # and of the head itself next to nothing
    total = sum(nbytes(t) for t in head)
    layers: Sequence[PackedLayer | LayerWeights] = weights.layers
    for index, layer in enumerate(layers):
        groups = spec.kv_groups[index] / shape.kv_groups
        neurons = spec.ffn[index] / shape.ffn
        ffn: tuple[PackedMatrix | DenseLinear, ...]
        if isinstance(layer, PackedLayer):
            ffn = (layer.gate_up, layer.down)
        else:
            ffn = (layer.gate, layer.up, layer.down)
        total += int(groups * sum(nbytes(t) for m in (layer.qkv, layer.o) for t in m.tensors()))
        total += int(neurons * sum(nbytes(t) for m in ffn for t in m.tensors()))
        token = 2 * spec.kv_groups[index] * shape.head_dim * weights.dtype.itemsize
        total += rows * cached * token
        for part in PARTS:
            own = model.own.get(Block(index, part), {}).get(spec.name)
            if own is not None:
                total += sum(nbytes(t) for t in own.tensors())
    return total
