"""Collectors of activation statistics of one layer, updated by hooks while batches run.

Sums within a batch are in fp32; the sums over batches are in fp64, so that small terms count.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruners.architecture import LocatedLayer, Shape

UnpadFunction = Callable[[torch.Tensor], torch.Tensor]
"""Maps the current batch's activations `[rows, length, features]` to fp32 `[tokens, features]`
without padding."""

ModuleSelector = Callable[[LocatedLayer], nn.Module]
"""Selects the module of a layer whose inputs or outputs are read."""


class Collector(Protocol):
    """Gathers one statistic of one layer while batches run through it."""

    def attach(self, layer: LocatedLayer, unpad: UnpadFunction) -> Sequence[RemovableHandle]:
        """Register hooks that update the statistic from unpadded activations."""
        ...


def down_projection(layer: LocatedLayer) -> nn.Module:
    """Select `down`, whose inputs are the neurons."""
    return layer.mlp.down


def output_projection(layer: LocatedLayer) -> nn.Module:
    """Select `o`, whose inputs are the features of all query heads."""
    return layer.attention.o


class InputMoments:
    """The first and second moment of each input feature of one linear module.

    `features` is the number of input features, `select` finds the module in a layer.
    """

    def __init__(self, features: int, select: ModuleSelector) -> None:
        self.tokens = 0
        self._select = select
        self._sum = torch.zeros(features, dtype=torch.float64)
        self._squares = torch.zeros(features, dtype=torch.float64)

    def attach(self, layer: LocatedLayer, unpad: UnpadFunction) -> Sequence[RemovableHandle]:
        """Register the hooks on `layer`."""

        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._add(unpad(args[0]))

        return [self._select(layer).register_forward_pre_hook(update)]

    def _add(self, features: torch.Tensor) -> None:
        self.tokens += len(features)
        self._sum += features.sum(0).double().cpu()
        self._squares += features.square().sum(0).double().cpu()

    @property
    def mean(self) -> torch.Tensor:
        """Return `E[h]`, fp32 `[features]`."""
        return (self._sum / self.tokens).float()

    @property
    def second_moment(self) -> torch.Tensor:
        """Return `E[h^2]`, fp32 `[features]`."""
        return (self._squares / self.tokens).float()

    @property
    def variance(self) -> torch.Tensor:
        """Return `E[h^2] - E[h]^2`, fp32 `[features]`."""
        mean = self._sum / self.tokens
        return (self._squares / self.tokens - mean.square()).clamp(min=0).float()


class OutputMoments(InputMoments):
    """The first and second moment of each output feature of one linear module."""

    def attach(self, layer: LocatedLayer, unpad: UnpadFunction) -> Sequence[RemovableHandle]:
        """Register the hooks on `layer`."""

        def update(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            self._add(unpad(output))

        return [self._select(layer).register_forward_hook(update)]


class SecondMomentMatrix:
    """The mean `E[h]` and the full matrix `E[h h^T]` of the inputs of one linear module.

    The matrix takes `8 * features^2` bytes, so only one layer's should be held at a time.
    """

    def __init__(self, features: int, select: ModuleSelector) -> None:
        self.tokens = 0
        self._select = select
        self._sum = torch.zeros(features, dtype=torch.float64)
        self._products = torch.zeros(features, features, dtype=torch.float64)

    def attach(self, layer: LocatedLayer, unpad: UnpadFunction) -> Sequence[RemovableHandle]:
        """Register the hooks on `layer`."""

        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs = unpad(args[0])
            self.tokens += len(inputs)
            self._sum += inputs.sum(0).double().cpu()
            self._products += (inputs.T @ inputs).cpu()

        return [self._select(layer).register_forward_pre_hook(update)]

    @property
    def mean(self) -> torch.Tensor:
        """Return `E[h]`, fp64 `[features]`."""
        return self._sum / self.tokens

    @property
    def matrix(self) -> torch.Tensor:
        """Return `E[h h^T]`, fp64 `[features, features]`, positive semi-definite."""
        return self._products / self.tokens


class InputActivations:
    """All inputs of one module, for scorers that need raw activations."""

    def __init__(self, select: ModuleSelector) -> None:
        self._select = select
        self._batches: list[torch.Tensor] = []

    def attach(self, layer: LocatedLayer, unpad: UnpadFunction) -> Sequence[RemovableHandle]:
        """Register the hooks on `layer`."""

        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._batches.append(unpad(args[0]).cpu())

        return [self._select(layer).register_forward_pre_hook(update)]

    @property
    def tensor(self) -> torch.Tensor:
        """Return the inputs of all tokens, fp32 `[tokens, features]`, on the CPU."""
        return torch.cat(self._batches)


class ResidualCosine:
    """The mean cosine between the residual stream before and after a layer and each of its blocks.

    A block's contribution is read from the module that adds it to the stream, so that this works in
    every family. A norm after the residual sum, as in BERT, counts as part of the MLP block.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._sums = dict.fromkeys(("layer", "attention", "mlp"), 0.0)
        self._before = torch.empty(0)
        self._added = torch.empty(0)

    def attach(self, layer: LocatedLayer, unpad: UnpadFunction) -> Sequence[RemovableHandle]:
        """Register the hooks on `layer`."""

        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._before = unpad(args[0])

        def add(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            self._added = unpad(output)

        def leave(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            before, after = self._before, unpad(output)
            between = before + layer.residual_scale * self._added
            self.tokens += len(after)
            for name, start, end in (
                ("layer", before, after),
                ("attention", before, between),
                ("mlp", between, after),
            ):
                self._sums[name] += float(torch.cosine_similarity(start, end).double().sum())

        return [
            layer.module.register_forward_pre_hook(enter),
            layer.attention_output.register_forward_hook(add),
            layer.module.register_forward_hook(leave),
        ]

    def influence(self, part: str) -> float:
        """Return `1 - E[cos(before, after)]` of `layer`, `attention` or `mlp`, from 0 to 2.

        It is 0 if the residual stream is only rescaled.
        """
        return 1 - self._sums[part] / self.tokens


class HeadEntropy:
    """The mean over queries of `H / log(keys)`, for each query head.

    `H` is the entropy of a query's attention weights and `log(keys)` that of uniform attention over
    the keys it may see, so that the value does not grow with the length of a prompt. One minus it
    is the KL divergence to uniform attention in the same unit. Queries with a single key are left
    out. The model must use eager attention, which returns its weights.
    """

    def __init__(self, shape: Shape) -> None:
        self._sum = torch.zeros(shape.heads, dtype=torch.float64)
        self._count = torch.zeros(shape.heads, dtype=torch.float64)

    def attach(self, layer: LocatedLayer, unpad: UnpadFunction) -> Sequence[RemovableHandle]:
        """Register the hooks on `layer`."""

        def update(module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            weights = output[1].float()  # [rows, heads, query, key]
            keys = (weights > 0).sum(-1)  # masked keys have weight 0
            entropy = torch.special.entr(weights).sum(-1) / keys.clamp(min=2).log()
            counted = unpad(keys.transpose(1, 2)) > 1
            self._sum += (unpad(entropy.transpose(1, 2)) * counted).sum(0).double().cpu()
            self._count += counted.sum(0).double().cpu()

        return [layer.attention.module.register_forward_hook(update)]

    @property
    def heads(self) -> torch.Tensor:
        """Return one value for each query head, fp32 `[heads]`, from 0 (one key) to 1 (uniform)."""
        return (self._sum / self._count).float()
