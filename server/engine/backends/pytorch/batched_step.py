"""A decode step of fixed shape, all of whose numbers are in tensors at fixed addresses."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.pytorch.nested_widths import RowSubset, RowSubsets
from server.engine.backends.pytorch.step import LayerCache
from server.engine.backends.pytorch.weights import PyTorchWeights


class BatchedStep:
    """One new token for each of `rows` sequences of one variant, with up to `length` cached tokens.

    What differs from step to step is in `inputs`, int64 `[5, rows]`: the tokens, their positions,
    their slots, where each sequence's region starts and how many tokens it holds, the new one
    included. A pass never waits for the host, so it can be recorded as a CUDA graph.
    """

    def __init__(
        self, rows: int, length: int, variant: VariantSpec, weights: PyTorchWeights
    ) -> None:
        device = weights.device
        self.inputs = torch.zeros(5, rows, dtype=torch.long, device=device)
        self.tokens, self._positions, self.slots, self._starts, self._cached = self.inputs.unbind()
        self.subsets = RowSubsets([1] * rows, [variant] * rows, device)
        self.rope: dict[str | None, tuple[Tensor, Tensor]] = {}
        self._weights = weights
        self._offsets = torch.arange(length, device=device)
        self._gathered = self._offsets
        self._masks: dict[int | None, Tensor] = {}

    def begin(self) -> None:
        """Compute from the inputs what all layers read. Every pass starts with it."""
        self.rope = self._weights.rope_at(self._positions)
        # Behind a region's end its last token is read instead: it is masked, but memory that was
        # never written may hold NaN, which a mask does not remove.
        inside = torch.minimum(self._offsets, self._cached[:, None] - 1)
        self._gathered = (self._starts[:, None] + inside).flatten()
        self._masks.clear()

    def end_rows(self, layer: int) -> None:
        """Return None: sequences with shallow tokens take no part in such steps."""

    def record_queries(self, queries: Tensor, rows: RowSubset, layer: int, groups: slice) -> None:
        """Do nothing: sequences whose queries are kept take no part in such steps."""

    def attend(self, queries: Tensor, rows: RowSubset, cached: LayerCache) -> Tensor:
        """Return softmax attention, `[rows, groups * queries_per_group * head_dim]`.

        `queries` are `[rows, groups, queries_per_group, head_dim]`. Keys and values are gathered
        and padded to `length`.
        """
        groups, count = cached.keys.shape[0], queries.shape[0]

        def gather(tensor: Tensor) -> Tensor:
            """From `[groups, slots, head_dim]` to `[rows, groups, length, head_dim]`."""
            flat = tensor.index_select(1, self._gathered)
            return flat.view(groups, count, -1, flat.shape[-1]).transpose(0, 1)

        # The query heads of a group stand as rows of one head, so that no key is repeated.
        mixed = F.scaled_dot_product_attention(
            queries,
            gather(cached.keys),
            gather(cached.values),
            attn_mask=self._mask(cached.window),
            scale=cached.scale,
        )
        return mixed.flatten(1)

    def _mask(self, window: int | None) -> Tensor:
        """Return which offsets of a region are visible, bool `[rows, 1, 1, length]`."""
        if window not in self._masks:
            length = self._cached[:, None]
            visible = self._offsets < length
            if window is not None:  # only sequences of which everything is cached get here
                visible = visible & (self._offsets >= length - window)
            self._masks[window] = visible[:, None, None]
        return self._masks[window]
