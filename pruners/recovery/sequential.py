"""Recovery layer by layer, each fitted on what the pruned and corrected ones before it give."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.recovery.moments import stream_moments
from pruners.recovery.recover import RecoveryOptions, RecoveryResult, recover_layer
from pruners.variant import PARTS, Block, VariantSpec, base_spec


def recover_sequentially(
    located: LocatedModel,
    spec: VariantSpec,
    order: Order,
    rows: Sequence[torch.Tensor],
    options: RecoveryOptions,
    progress: Progress | None = None,
) -> RecoveryResult:
    """Return corrections of one variant, fitted on the activations that it will have when served.

    This is the sequential calibration of SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774):
    each layer is fitted to its own uncut output for those activations. (Fitted to the base's
    output, or to the base's residual stream, corrections were better on text like the
    calibration's and far worse on other text.) `rows` are 1-D token ids, ragged. Raises
    `RecoveryError` for fewer than two rows, `ValueError` if the spec does not fit the model.
    """
    spec.check(located.shape)
    full = base_spec(located.shape)
    result = RecoveryResult()
    with ExitStack() as applied:
        for moments in stream_moments(located, rows, progress, pruned_upstream=True):
            layer = recover_layer(moments, spec, order, options)
            result.add(layer)
            only_this_layer = replace(full, name=spec.name)
            for block in (Block(moments.index, part) for part in PARTS):
                only_this_layer = only_this_layer.with_width(block, spec.width(block))
            applied.enter_context(apply_mask(located, only_this_layer, order, layer.corrections))
    return result
