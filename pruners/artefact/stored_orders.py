"""The orders of neurons and of KV groups as an artefact stores them."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pruners.architecture import Shape


def read_orders(path: Path, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int32 `[layers, ffn]` and `[layers, kv_groups]`, a permutation in every layer.

    Raises `ValueError` for a file that is missing, damaged or of another shape.
    """
    try:
        orders = load_file(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from error
    widths = {"ffn_order": shape.ffn, "kv_order": shape.kv_groups}
    if orders.keys() != widths.keys():
        raise ValueError(f"{path.name} holds {', '.join(sorted(orders))}")
    for name, width in widths.items():
        order = orders[name]
        if order.dtype != torch.int32 or tuple(order.shape) != (shape.layers, width):
            raise ValueError(f"{name} is {order.dtype} of shape {tuple(order.shape)}")
        if not torch.equal(order.sort(dim=1).values.long(), torch.arange(width).expand_as(order)):
            raise ValueError(f"{name} is not a permutation in every layer")
    return orders["ffn_order"], orders["kv_order"]
