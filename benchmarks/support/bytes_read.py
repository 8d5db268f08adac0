"""Bytes that a decode step reads."""

from pruners.variant import PARTS, Block, VariantSpec
from server.engine.loading.load import LoadedModel


def step_bytes(model: LoadedModel, spec: VariantSpec, rows: int = 1, cached: int = 0) -> int:
    """Return the bytes of weights, read once, and of the keys and values of every row."""
    weights = model.weights
    shape = weights.shape
    total = sum(t.nbytes for t in weights.head_tensors(rows))
    for index, layer in enumerate(weights.layers):
        groups = spec.kv_groups[index] / shape.kv_groups
        neurons = spec.ffn[index] / shape.ffn
        total += int(groups * sum(t.nbytes for t in layer.attention_tensors()))
        total += int(neurons * sum(t.nbytes for t in layer.mlp_tensors()))
        token = 2 * spec.kv_groups[index] * shape.head_dim * weights.dtype.itemsize
        total += rows * cached * token
        for part in PARTS:
            correction = model.corrections.get(Block(index, part), {}).get(spec.name)
            if correction is not None:
                total += sum(t.nbytes for t in correction.tensors())
    return total
