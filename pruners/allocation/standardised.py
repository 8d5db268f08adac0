"""Widths by one threshold on scores that are standardised in each layer."""

import torch

from pruners.allocation.base import MULTIPLE, count_blocks, count_kept_blocks


def standardised_widths(
    scores: torch.Tensor, keep: float, multiple: int = MULTIPLE
) -> tuple[int, ...]:
    """Return one width a layer that keeps the best blocks of all layers together.

    `scores` is `[layers, units]`, any floating-point dtype, such as `ImportanceScores.ffn`. Scores
    are compared after z = (score - mean) / standard deviation, taken in each layer. A block is
    `multiple` units in falling order, worth the mean of their z; at least one block a layer stays.
    This is the adaptive global search of FLAP (An et al. 2024, arXiv 2312.11983). Raises
    `AllocationError` if less than one block a layer would be left, or if blocks do not fill a
    layer.
    """
    layers, full = scores.shape
    blocks = count_blocks(full, multiple)
    total = count_kept_blocks(layers, blocks, keep)
    centred = scores.double() - scores.double().mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt()
    # A layer of equal scores has deviation 0; its z are 0, not NaN.
    z = centred / deviation.clamp(min=torch.finfo(torch.float64).tiny)
    worth = z.sort(1, descending=True).values.view(layers, blocks, multiple).mean(-1)
    worth[:, 0] = float("inf")
    best = worth.flatten().argsort(descending=True, stable=True)[:total]
    return tuple((torch.bincount(best // blocks, minlength=layers) * multiple).tolist())
