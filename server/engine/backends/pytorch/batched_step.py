"""A decode step of fixed shape, all of whose numbers are in tensors that stay where they are."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.pytorch.nested_widths import Rows, RowSets
from server.engine.backends.pytorch.step import View
from server.engine.backends.pytorch.weights import BaseWeights


class BatchedStep:
    """One new token for each of `rows` sequences of one variant, with up to `length` cached tokens.

    What differs from step to step is in `inputs`, `[5, rows]`: the tokens, their positions, their
    slots, where each sequence's region starts and how many tokens it holds, the new one included.
    Nothing is asked of the host meanwhile, so that a pass can be recorded.
    """

    def __init__(self, rows: int, length: int, variant: VariantSpec, weights: BaseWeights) -> None:
        device = weights.device
        self.inputs = torch.zeros(5, rows, dtype=torch.long, device=device)
        self.tokens, self._positions, self.slots, self._starts, self._held = self.inputs.unbind()
        self.sets = RowSets([1] * rows, [variant] * rows, device)
        self.rope: dict[str | None, tuple[Tensor, Tensor]] = {}
        self._weights = weights
        self._place = torch.arange(length, device=device)
        self._where = self._place
        self._masks: dict[int | None, Tensor] = {}

    def begin(self) -> None:
        """Computes from the inputs what all layers read; a pass starts with it."""
        self.rope = self._weights.rope_at(self._positions)
        # Behind a region's end its last token stands in: hidden, but never what is no number.
        inside = torch.minimum(self._place, self._held[:, None] - 1)
        self._where = (self._starts[:, None] + inside).flatten()
        self._masks.clear()

    def note(self, queries: Tensor, rows: Rows, layer: int, groups: slice) -> None:
        """Sequences whose queries are kept take no part in such steps."""

    def mix(self, queries: Tensor, rows: Rows, view: View) -> Tensor:
        """All sequences at once. Their keys and values are gathered, padded to `length`."""
        groups, count = view.keys.shape[0], queries.shape[0]

        def gathered(cached: Tensor) -> Tensor:
            flat = cached.index_select(1, self._where)
            return flat.view(groups, count, -1, flat.shape[-1]).transpose(0, 1)

        # A group's query heads stand as rows of one head: nothing is repeated for them.
        mixed = F.scaled_dot_product_attention(
            queries,
            gathered(view.keys),
            gathered(view.values),
            attn_mask=self._mask(view.window),
            scale=view.scale,
        )
        return mixed.flatten(1)

    def _mask(self, window: int | None) -> Tensor:
        """Which places of a region are seen, `[rows, 1, 1, length]`."""
        if window not in self._masks:
            held = self._held[:, None]
            visible = self._place < held
            if window is not None:  # only sequences of which everything is cached get here
                visible = visible & (self._place >= held - window)
            self._masks[window] = visible[:, None, None]
        return self._masks[window]
