"""Moments of what a variant gives a map together with what the base would."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from pruners.architecture import Layer
from pruners.collectors import Activations, Site, Valid
from pruners.recovery.solve import Inputs


class PairedMoments:
    """Reads a site's inputs beside `base`, the same tokens' inputs there in the unpruned model."""

    def __init__(self, features: int, site: Site, base: Activations) -> None:
        self._site = site
        self._base = iter(base.parts)
        self._tokens = 0
        self._means = torch.zeros(2, features, dtype=torch.float64)
        self._products = torch.zeros(3, features, features, dtype=torch.float64)

    def attach(self, layer: Layer, valid: Valid) -> Sequence[RemovableHandle]:
        def update(module: nn.Module, args: tuple[Any, ...]) -> None:
            own, base = valid(args[0]).cpu(), next(self._base)
            self._tokens += len(own)
            self._means += torch.stack([own.sum(0), base.sum(0)])
            for total, one, other in zip(
                self._products, (own, base, base), (own, base, own), strict=True
            ):
                total += one.T @ other

        return [self._site(layer).register_forward_pre_hook(update)]

    @property
    def inputs(self) -> Inputs:
        """All five moments, fp64."""
        mean, base_mean = self._means / self._tokens
        second, base_second, cross = self._products / self._tokens
        return Inputs(mean, second, base_mean, base_second, cross)
