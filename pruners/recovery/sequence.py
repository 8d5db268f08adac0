"""Recovery layer by layer, each fitted on what the pruned and corrected ones before it give."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.recovery.passes import moments
from pruners.recovery.recover import Recipe, Recovered, recover_layer
from pruners.variant import PARTS, Block, VariantSpec, base_spec


def recover_in_sequence(
    located: LocatedModel,
    spec: VariantSpec,
    order: Order,
    rows: Sequence[torch.Tensor],
    recipe: Recipe,
    progress: Progress | None = None,
) -> Recovered:
    """As `recover` for one variant, on the activations that it will really see.

    The sequential calibration of SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774): the goal
    of a layer is its own uncut output for those activations. (With the base's output, or the
    base's residual stream, as the goal, fits were better on text like the calibration's and far
    worse on other text.) Raises what `recover` raises.
    """
    spec.check(located.shape)
    full = base_spec(located.shape)
    recovered = Recovered({}, [])
    with ExitStack() as applied:
        for index, linears in moments(located, rows, progress, pruned_upstream=True):
            recover_layer(located, index, linears, spec, order, recipe, recovered)
            alone = full
            for block in (Block(index, part) for part in PARTS):
                alone = alone.with_width(block, spec.width(block))
            made = {b: c for b, c in recovered.corrections.items() if b.layer == index}
            alone = replace(alone, name=spec.name)
            applied.enter_context(apply_mask(located, alone, order, made))
    return recovered
