"""Bytes that a decode step reads."""

from pruners.variant import Block, VariantSpec
from server.engine.dense.linear import nbytes
from server.engine.load import LoadedModel
from server.engine.packed.native_decoder import FEW
from server.engine.packed.packed_weights import PackedWeights


def step_bytes(model: LoadedModel, spec: VariantSpec, rows: int = 1, cached: int = 0) -> int:
    """Weights once, and the keys and values of every row."""
    weights = model.weights
    shape = weights.shape
    head = weights.head.tensors()
    if isinstance(weights, PackedWeights) and weights.preview is not None and rows <= FEW:
        head = weights.preview.tensors()  # and of the head itself next to nothing
    total = sum(nbytes(t) for t in head)
    for index, layer in enumerate(weights.layers):
        groups = spec.kv_groups[index] / shape.kv_groups
        neurons = spec.ffn[index] / shape.ffn
        if isinstance(weights, PackedWeights):
            ffn = (layer.gate_up, layer.down)
        else:
            ffn = (layer.gate, layer.up, layer.down)
        total += int(groups * sum(nbytes(t) for m in (layer.qkv, layer.o) for t in m.tensors()))
        total += int(neurons * sum(nbytes(t) for m in ffn for t in m.tensors()))
        token = 2 * spec.kv_groups[index] * shape.head_dim * weights.dtype.itemsize
        total += rows * cached * token
        for part in ("attention", "mlp"):
            own = model.own.get(Block(index, part), {}).get(spec.name)
            if own is not None:
                total += sum(nbytes(t) for t in own.tensors())
    return total
