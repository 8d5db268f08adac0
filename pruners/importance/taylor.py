"""LLM-Pruner: the loss that removal would cost, to first order."""

from collections.abc import Sequence

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import TokenBatch, make_batches
from pruners.importance.base import ImportanceScores, stack_scores
from pruners.support.progress import track

# Activations of all layers are alive for the backward pass: smaller batches than elsewhere.
_BATCH_TOKENS = 512


class Taylor:
    """`E_rows |sum_t h_tj * dL/dh_tj|`: the first-order change of a row's loss without the unit.

    The vector-wise first-order criterion of LLM-Pruner (Ma et al. 2023, arXiv 2305.11627), since
    `sum_t h_tj dL/dh_tj = sum_i W_ij dL/dW_ij` over the column of `down` or `o`; so no gradient of
    a weight is ever held. Absolute values are taken a row, as by Molchanov et al. (2017, arXiv
    1611.06440): the signed mean over all data vanishes at an optimum. L is the
    cross-entropy of a row in nats, summed over its tokens: of the next one, or in an encoder of
    the token itself.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        shape = located.shape
        ffn = torch.zeros(shape.layers, shape.ffn)
        kv = torch.zeros(shape.layers, shape.kv_groups)
        inputs = list(make_batches(rows, _BATCH_TOKENS))
        for batch in track(inputs, "Reading gradients", progress):
            products = _products(located, batch)  # o and down of each layer in turn
            for layer, (heads, neurons) in enumerate(
                zip(products[::2], products[1::2], strict=True)
            ):
                groups = heads.reshape(len(heads), shape.kv_groups, -1).sum(-1)
                kv[layer] += groups.abs().sum(0).cpu()
                ffn[layer] += neurons.abs().sum(0).cpu()
        return stack_scores(list(ffn / len(rows)), list(kv / len(rows)))


@torch.enable_grad()
def _products(located: LocatedModel, batch: TokenBatch) -> list[torch.Tensor]:
    """`sum_t h * dL/dh`, `[rows, features]`, at the input of `o` and `down` of each layer."""
    seen: list[torch.Tensor] = []

    def note(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        seen.append(args[0])

    def open_graph(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_()  # gradients flow though every weight is frozen

    handles = [located.embed.register_forward_hook(open_graph)]
    for layer in located.layers:
        for linear in (layer.attention.o, layer.mlp.down):
            handles.append(linear.register_forward_pre_hook(note))
    try:
        scored = batch.scored_positions() if located.causal else batch.valid
        logits = located.head(final_hidden(located, batch)[scored.to(located.head.weight.device)])
    finally:
        for handle in handles:
            handle.remove()
    targets = batch.targets(scored) if located.causal else batch.tokens[scored]
    loss = nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum")
    gradients = torch.autograd.grad(loss, seen)
    # No real token sees padding, so that no loss has a gradient there.
    products = [h.detach().float() * g.float() for h, g in zip(seen, gradients, strict=True)]
    return [product.reshape(*batch.valid.shape, -1).sum(1) for product in products]
