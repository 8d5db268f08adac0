"""The protocol of a scorer, and the order that scores give."""

from collections.abc import Sequence
from typing import Protocol

import torch

from pruners.architecture import Decoder, Layer, Shape
from pruners.calibration import LayerStatistics
from pruners.order import Order


class Importance(Protocol):
    """Scores the units of one layer; a higher score is kept longer."""

    def ffn(self, layer: Layer, statistics: LayerStatistics) -> torch.Tensor:
        """One score a neuron, `[ffn]`."""
        ...

    def kv(self, layer: Layer, statistics: LayerStatistics, shape: Shape) -> torch.Tensor:
        """One score a key/value group with its query heads, `[kv_groups]`."""
        ...


@torch.no_grad()
def rank(decoder: Decoder, statistics: Sequence[LayerStatistics], importance: Importance) -> Order:
    """Orders each layer's neurons and groups by falling score; ties keep their place."""
    pairs = list(zip(decoder.layers, statistics, strict=True))
    ffn = [importance.ffn(layer, seen) for layer, seen in pairs]
    kv = [importance.kv(layer, seen, decoder.shape) for layer, seen in pairs]
    return Order(_falling(ffn), _falling(kv))


def per_group(scores: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Sums scores of attention features, `[heads * head_dim]`, over each KV group's query heads."""
    return scores.reshape(shape.kv_groups, -1).sum(1)


def _falling(scores: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(scores).cpu().argsort(dim=1, descending=True, stable=True)
