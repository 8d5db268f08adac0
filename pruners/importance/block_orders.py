"""Orders of layers and blocks by a score alone: which to skip first."""

from collections.abc import Sequence

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import HeadEntropy, ResidualCosine
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.attention_entropy import eager_attention
from pruners.variant import PARTS, Block


def last_layers(located: LocatedModel) -> tuple[int, ...]:
    """Return the layers from the last to the first, as early exit skips them."""
    return tuple(reversed(range(len(located.layers))))


def layer_influence(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> tuple[int, ...]:
    """Return the layers by rising block influence, `1 - E[cos(input, output)]`.

    The layer that changes the direction of the residual stream least is skipped first: ShortGPT
    (Men et al. 2024, arXiv 2403.03853).
    """
    cosines = _cosines(located, rows, progress)
    return tuple(sorted(range(len(cosines)), key=lambda layer: cosines[layer].influence("layer")))


def block_influence(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> tuple[Block, ...]:
    """Return the attention and MLP blocks of all layers in one order of rising influence.

    It is block influence taken for each block: LLM-Drop (He et al. 2024, arXiv 2406.15786).
    """
    cosines = _cosines(located, rows, progress)
    blocks = [Block(layer, part) for layer in range(len(cosines)) for part in PARTS]
    return tuple(sorted(blocks, key=lambda block: cosines[block.layer].influence(block.part)))


def attention_entropy(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
) -> tuple[Block, ...]:
    """Return the attention blocks by falling `H / log(keys)`, the mean over heads and queries.

    `H` is the entropy of a query's attention over `keys` keys; the most uniform attention is
    skipped first. It is the criterion of the library slim-model, divided by its maximum so that
    it does not depend on the length of prompts.
    """

    def make_collectors(_: int) -> tuple[HeadEntropy]:
        return (HeadEntropy(located.shape),)

    with eager_attention(located):
        entropies = [
            float(entropy.heads.mean())
            for _, (entropy,) in collect_by_layer(located, rows, make_collectors, progress=progress)
        ]
    layers = sorted(range(len(entropies)), key=lambda layer: -entropies[layer])
    return tuple(Block(layer, "attention") for layer in layers)


def _cosines(
    located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None
) -> list[ResidualCosine]:
    def make_collectors(_: int) -> tuple[ResidualCosine]:
        return (ResidualCosine(),)

    return [
        cosine
        for _, (cosine,) in collect_by_layer(located, rows, make_collectors, progress=progress)
    ]
