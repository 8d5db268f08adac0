"""Rotary embeddings: the frequencies of a model, and tables of cos and sin."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.architecture import LocatedModel, UnsupportedModelError

_EXTRA_POSITIONS = 512  # beyond the context, for which evictions predict queries


@dataclass(frozen=True, slots=True)
class RopeFrequencies:
    """Angles by position: `inverse` is fp32 `[rotated / 2]`; `scale` multiplies cos and sin."""

    inverse: Tensor
    scale: float


def rope_frequencies(located: LocatedModel) -> dict[str | None, RopeFrequencies]:
    """Return a model's frequencies by kind. Raises `UnsupportedModelError`."""
    found: dict[str | None, RopeFrequencies] = {}
    serving, head_dim = located.serving, located.shape.head_dim
    rotated = head_dim if serving is None else serving.rotary_dim or head_dim
    for kind in dict.fromkeys(layer.rope_layer_type for layer in located.layers):
        inverse, scale = located.rope_frequencies(kind)
        if 2 * len(inverse) != rotated:
            raise UnsupportedModelError(
                f"rotary tables of {2 * len(inverse)} for heads of {head_dim} "
                "(partial_rotary_factor or head_dim in config.json) are not supported"
            )
        found[kind] = RopeFrequencies(inverse.float().clone(), scale)
    return found


def rope_tables(
    frequencies: Mapping[str | None, RopeFrequencies], context: int, dtype: torch.dtype
) -> dict[str | None, tuple[Tensor, Tensor]]:
    """Return cos and sin by kind, each `[context and a few, rotated]`, as `transformers` has them.

    They rotate that many first features of a head. The first half of sin has its sign changed:
    rotating is `x * cos + roll(x, rotated / 2) * sin`.
    """
    positions = torch.arange(context + _EXTRA_POSITIONS)[:, None].float()
    tables = {}
    for kind, one in frequencies.items():
        angles = positions * one.inverse
        cos, sin = (angles.cos() * one.scale).to(dtype), (angles.sin() * one.scale).to(dtype)
        tables[kind] = (torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1))
    return tables
