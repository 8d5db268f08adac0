"""Models in memory as what a base is converted from."""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruners.architecture import locate
from server.engine.backends.matrix import Matrix
from server.engine.backends.native.packing import Bits
from server.engine.backends.native.source_precision import is_exact
from server.engine.backends.pytorch.convert import ConvertedBase


class ModelParameters:
    """Reads the parameters that a model's modules have (see `matrix.Parameters`)."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def matrix(self, module: nn.Linear | nn.Embedding, rows: slice | None = None) -> Matrix:
        return Matrix(module.weight.detach()[slice(None) if rows is None else rows].clone())

    def bias(self, module: nn.Linear) -> Tensor | None:
        return None if module.bias is None else module.bias.detach()

    def norm(self, module: nn.Module) -> Tensor:
        return next(module.parameters()).detach()

    def exact_bits(self, module: nn.Linear | nn.Embedding) -> Bits | None:
        weight = module.weight.detach()
        return next((bits for bits in (4, 8) if is_exact(weight, bits)), None)

    def is_quantised(self, module: nn.Linear | nn.Embedding) -> bool:
        return False

    def release(self, module: nn.Module) -> None:
        pass


def random_order(layers: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(width, generator=generator) for _ in range(layers)])


def converted(model: PreTrainedModel, seed: int | None = 7) -> ConvertedBase:
    """A base to convert; with a seed, in a random order, which must not change it."""
    located = locate(model)
    shape = located.shape
    ffn = None if seed is None else random_order(shape.layers, shape.ffn, seed)
    kv = None if seed is None else random_order(shape.layers, shape.kv_groups, seed)
    parameters = ModelParameters(located.embed.weight.dtype)
    return ConvertedBase(located, parameters, ffn, kv, model.config.max_position_embeddings)
