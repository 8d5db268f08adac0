"""LLM-Pruner's first-order Taylor score."""

from collections.abc import Sequence

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import LocatedModel
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import TokenBatch, make_batches
from pruners.importance.base import ImportanceScores, stack_scores
from pruners.support.progress import track

# The backward pass keeps the activations of all layers, so batches are smaller than elsewhere.
_BATCH_TOKENS = 512


class Taylor:
    """Scores input `j` of `down` or `o` by `E_rows |sum_t h_tj * dL/dh_tj|`.

    It is the first-order change of a row's loss `L` when the unit is removed, with `h_tj` its
    activation at token `t`. `L` is the row's cross-entropy in nats, summed over its tokens, of the
    next token, or of the token itself in an encoder. A group's products are summed over its
    features before the absolute value is taken.

    It is the vector-wise first-order criterion of LLM-Pruner (Ma et al. 2023, arXiv 2305.11627): as
    `sum_t h_tj dL/dh_tj = sum_i W_ij dL/dW_ij`, no gradient of a weight is needed. The absolute
    value is taken for each row, as by Molchanov et al. (2017, arXiv 1611.06440), since the signed
    mean over all data is zero at an optimum.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        """Return the scores of all units."""
        shape = located.shape
        ffn = torch.zeros(shape.layers, shape.ffn)
        kv = torch.zeros(shape.layers, shape.kv_groups)
        inputs = list(make_batches(rows, _BATCH_TOKENS))
        for batch in track(inputs, "Reading gradients", progress):
            products = _activation_gradient_products(
                located, batch
            )  # of `o` and `down` of each layer in turn
            for layer, (heads, neurons) in enumerate(
                zip(products[::2], products[1::2], strict=True)
            ):
                groups = heads.reshape(len(heads), shape.kv_groups, -1).sum(-1)
                kv[layer] += groups.abs().sum(0).cpu()
                ffn[layer] += neurons.abs().sum(0).cpu()
        return stack_scores(list(ffn / len(rows)), list(kv / len(rows)))


@torch.enable_grad()
def _activation_gradient_products(located: LocatedModel, batch: TokenBatch) -> list[torch.Tensor]:
    """Return `sum_t h * dL/dh`, fp32 `[rows, features]`, for `o` and `down` of each layer."""
    activations: list[torch.Tensor] = []

    def record(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        activations.append(args[0])

    def require_gradient(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_()  # the weights are frozen

    handles = [located.embed.register_forward_hook(require_gradient)]
    for layer in located.layers:
        for linear in (layer.attention.o, layer.mlp.down):
            handles.append(linear.register_forward_pre_hook(record))
    try:
        scored = batch.scored_positions() if located.causal else batch.valid
        logits = located.head(final_hidden(located, batch)[scored.to(located.head.weight.device)])
    finally:
        for handle in handles:
            handle.remove()
    targets = batch.targets(scored) if located.causal else batch.tokens[scored]
    loss = nn.functional.cross_entropy(logits.float(), targets.to(logits.device), reduction="sum")
    gradients = torch.autograd.grad(loss, activations)
    # No scored position depends on padding, so the products are zero there.
    products = [h.detach().float() * g.float() for h, g in zip(activations, gradients, strict=True)]
    return [product.reshape(*batch.valid.shape, -1).sum(1) for product in products]
