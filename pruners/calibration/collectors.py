"""Statistics of one layer, one small class each, updated while batches run through it.

Sums of a batch are taken in fp32 and added up in fp64, where small terms are not lost.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruners.architecture import LocatedLayer, Shape

UnpadFunction = Callable[[torch.Tensor], torch.Tensor]
"""Takes `[rows, length, features]` of the current batch to fp32 `[tokens, features]`, unpadded."""

ModuleSelector = Callable[[LocatedLayer], nn.Module]
"""Finds the module of a layer whose input or output is read."""


class Collector(Protocol):
    """Reads one statistic of one layer while batches run through it."""

    def attach(self, layer: LocatedLayer, valid: UnpadFunction) -> Sequence[RemovableHandle]:
        """Hooks the layer; the hooks update the statistic with `valid` activations."""
        ...


def down_projection(layer: LocatedLayer) -> nn.Module:
    """The projection whose inputs are the FFN neurons."""
    return layer.mlp.down


def output_projection(layer: LocatedLayer) -> nn.Module:
    """The projection whose inputs are the features of all query heads."""
    return layer.attention.o


class InputMoments:
    """First and second moment of each input feature of one linear module."""

    def __init__(self, features: int, site: ModuleSelector) -> None:
        self.tokens = 0
        self._site = site
        self._sum = torch.zeros(features, dtype=torch.float64)
        self._squares = torch.zeros(features, dtype=torch.float64)

    def attach(self, layer: LocatedLayer, valid: UnpadFunction) -> Sequence[RemovableHandle]:
        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._add(valid(args[0]))

        return [self._site(layer).register_forward_pre_hook(update)]

    def _add(self, features: torch.Tensor) -> None:
        self.tokens += len(features)
        self._sum += features.sum(0).double().cpu()
        self._squares += features.square().sum(0).double().cpu()

    @property
    def mean(self) -> torch.Tensor:
        """E[h], `[features]`."""
        return (self._sum / self.tokens).float()

    @property
    def second_moment(self) -> torch.Tensor:
        """E[h^2], `[features]`."""
        return (self._squares / self.tokens).float()

    @property
    def variance(self) -> torch.Tensor:
        """E[h^2] - E[h]^2, `[features]`."""
        mean = self._sum / self.tokens
        return (self._squares / self.tokens - mean.square()).clamp(min=0).float()


class OutputMoments(InputMoments):
    """The same moments of each output feature."""

    def attach(self, layer: LocatedLayer, valid: UnpadFunction) -> Sequence[RemovableHandle]:
        def update(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            self._add(valid(output))

        return [self._site(layer).register_forward_hook(update)]


class SecondMomentMatrix:
    """The mean and the full matrix `E[h h^T]` of the inputs of one linear module.

    8 bytes an entry: hold one layer's at a time.
    """

    def __init__(self, features: int, site: ModuleSelector) -> None:
        self.tokens = 0
        self._site = site
        self._sum = torch.zeros(features, dtype=torch.float64)
        self._products = torch.zeros(features, features, dtype=torch.float64)

    def attach(self, layer: LocatedLayer, valid: UnpadFunction) -> Sequence[RemovableHandle]:
        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            inputs = valid(args[0])
            self.tokens += len(inputs)
            self._sum += inputs.sum(0).double().cpu()
            self._products += (inputs.T @ inputs).cpu()

        return [self._site(layer).register_forward_pre_hook(update)]

    @property
    def mean(self) -> torch.Tensor:
        """E[h], fp64 `[features]`."""
        return self._sum / self.tokens

    @property
    def matrix(self) -> torch.Tensor:
        """E[h h^T], fp64 `[features, features]`, positive semi-definite."""
        return self._products / self.tokens


class InputActivations:
    """All inputs of one module, for those that want them raw; `parts` are `[tokens, features]`."""

    def __init__(self, site: ModuleSelector) -> None:
        self._site = site
        self.parts: list[torch.Tensor] = []

    def attach(self, layer: LocatedLayer, valid: UnpadFunction) -> Sequence[RemovableHandle]:
        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.parts.append(valid(args[0]).cpu())

        return [self._site(layer).register_forward_pre_hook(update)]

    @property
    def all(self) -> torch.Tensor:
        """fp32 `[tokens, features]`."""
        return torch.cat(self.parts)


class ResidualCosine:
    """Mean cosine between the residual stream before and after: the layer and both sub-blocks.

    What a sub-block adds is read where it joins the stream, so that no family's forward is copied.
    Where a norm stands behind the sum, as in BERT, it counts to the MLP.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._sums = dict.fromkeys(("layer", "attention", "mlp"), 0.0)
        self._before = torch.empty(0)
        self._added = torch.empty(0)

    def attach(self, layer: LocatedLayer, valid: UnpadFunction) -> Sequence[RemovableHandle]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._before = valid(args[0])

        def add(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            self._added = valid(output)

        def leave(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            before, between, after = self._before, self._before + self._added, valid(output)
            self.tokens += len(after)
            for name, one, other in (
                ("layer", before, after),
                ("attention", before, between),
                ("mlp", between, after),
            ):
                self._sums[name] += float(torch.cosine_similarity(one, other).double().sum())

        return [
            layer.module.register_forward_pre_hook(enter),
            layer.attention_output.register_forward_hook(add),
            layer.module.register_forward_hook(leave),
        ]

    def influence(self, part: str) -> float:
        """`1 - E[cos]` of `layer`, `attention` or `mlp`: 0 where the stream is only rescaled."""
        return 1 - self._sums[part] / self.tokens


class HeadEntropy:
    """Entropy of each head's attention over the entropy of uniform attention, averaged.

    Normalised by `log(keys)` of each query, so that it does not grow with the length of a prompt;
    the KL divergence to uniform attention is one minus it, in the same unit. Queries with a single
    key are left out. Needs the model's eager attention, which returns its weights.
    """

    def __init__(self, shape: Shape) -> None:
        self._sum = torch.zeros(shape.heads, dtype=torch.float64)
        self._count = torch.zeros(shape.heads, dtype=torch.float64)

    def attach(self, layer: LocatedLayer, valid: UnpadFunction) -> Sequence[RemovableHandle]:
        def update(module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
            weights = output[1].float()  # [rows, heads, query, key]
            keys = (weights > 0).sum(-1)  # what is masked has weight zero
            entropy = torch.special.entr(weights).sum(-1) / keys.clamp(min=2).log()
            seen = valid(keys.transpose(1, 2)) > 1
            self._sum += (valid(entropy.transpose(1, 2)) * seen).sum(0).double().cpu()
            self._count += seen.sum(0).double().cpu()

        return [layer.attention.module.register_forward_hook(update)]

    @property
    def heads(self) -> torch.Tensor:
        """One value a query head, `[heads]`, from 0 (one key) to 1 (uniform)."""
        return (self._sum / self._count).float()
