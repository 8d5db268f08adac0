"""Which layers or sub-blocks to skip by a score alone, beside the greedy choice of `depth`."""

from collections.abc import Sequence

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import HeadEntropy, ResidualCosine
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.attention_entropy import eager_attention
from pruners.variant import PARTS, Block


def last_layers(located: LocatedModel) -> tuple[int, ...]:
    """Layers from the last to the first: the baseline of early exit."""
    return tuple(reversed(range(len(located.layers))))


def layer_influence(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> tuple[int, ...]:
    """Layers by rising block influence, `1 - E[cos(input, output)]`.

    ShortGPT (Men et al. 2024, arXiv 2403.03853): the layer that turns the residual stream least
    goes first.
    """
    seen = _cosines(located, rows, progress)
    return tuple(sorted(range(len(seen)), key=lambda layer: seen[layer].influence("layer")))


def block_influence(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> tuple[Block, ...]:
    """Attention and MLP sub-blocks of all layers, together, by rising influence.

    LLM-Drop (He et al. 2024, arXiv 2406.15786): block influence for each sub-block.
    """
    seen = _cosines(located, rows, progress)
    blocks = [Block(layer, part) for layer in range(len(seen)) for part in PARTS]
    return tuple(sorted(blocks, key=lambda block: seen[block.layer].influence(block.part)))


def attention_entropy(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> tuple[Block, ...]:
    """Attention sub-blocks by falling entropy over `log(keys)`, the mean over heads.

    slim-model: the flattest attention goes first; normalised, so that prompts of any length count
    alike.
    """

    def watch(_: int) -> tuple[HeadEntropy]:
        return (HeadEntropy(located.shape),)

    with eager_attention(located):
        seen = [
            float(entropy.heads.mean())
            for _, (entropy,) in collect_by_layer(located, rows, watch, progress=progress)
        ]
    layers = sorted(range(len(seen)), key=lambda layer: -seen[layer])
    return tuple(Block(layer, "attention") for layer in layers)


def _cosines(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None
) -> list[ResidualCosine]:
    def watch(_: int) -> tuple[ResidualCosine]:
        return (ResidualCosine(),)

    return [cosine for _, (cosine,) in collect_by_layer(located, rows, watch, progress=progress)]
