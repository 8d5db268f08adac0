"""One threshold for all layers."""

import torch

from pruners.allocation.base import MULTIPLE, blocks_of, blocks_to_keep


def standardised(scores: torch.Tensor, keep: float, multiple: int = MULTIPLE) -> tuple[int, ...]:
    """Keeps the best blocks of all layers by scores with mean 0 and deviation 1 in each layer.

    The adaptive global search of FLAP (An et al. 2024, arXiv 2312.11983). `scores` is
    `[layers, units]`, such as `ImportanceScores.ffn`; a block is `multiple` units in falling order,
    worth their mean. `[layers]`; at least one block a layer stays, and sums and errors are as for
    `uniform`.
    """
    layers, full = scores.shape
    blocks = blocks_of(full, multiple)
    total = blocks_to_keep(layers, blocks, keep)
    centred = scores.double() - scores.double().mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    # A layer whose units are all alike stays at zero.
    values = centred / deviation.clamp(min=torch.finfo(torch.float64).tiny)
    worth = values.sort(1, descending=True).values.view(layers, blocks, multiple).mean(-1)
    worth[:, 0] = float("inf")
    kept = worth.flatten().argsort(descending=True, stable=True)[:total]
    return tuple((torch.bincount(kept // blocks, minlength=layers) * multiple).tolist())
