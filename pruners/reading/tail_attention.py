"""What the end of a prompt attends to in one layer."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pruners.architecture import LocatedModel
from pruners.kv.base import rotate

_POOLED = 5  # neighbouring tokens over which attention is averaged


class TailAttention:
    """Records one layer's queries and keys, and says what the last tokens of a prompt attend to."""

    def __init__(self, located: LocatedModel, layer: int, last: int) -> None:
        self._located = located
        self._layer = located.layers[layer]
        self._last = last
        self._queries = torch.empty(0)
        self._keys = torch.empty(0)

    def hooks(self) -> Iterator[Any]:
        """Attach the hooks that record and yield their handles."""
        attention = self._layer.attention
        yield attention.q.register_forward_hook(self._note_queries)
        yield attention.k.register_forward_hook(self._note_keys)

    def scores(self, row: int, prompt: int) -> Tensor:
        """Return the attention that each token of a row's prompt gets from the last, `[prompt]`.

        It is summed over these queries and all heads, then averaged over neighbouring tokens.
        """
        attention, last = self._layer.attention, min(self._last, prompt)
        dim = self._located.shape.head_dim
        queries = attention.query_heads(self._queries[row, prompt - last : prompt], dim)
        keys = attention.key_heads(self._keys[row, :prompt], dim)
        queries, keys = (heads.transpose(0, 1).float() for heads in (queries, keys))
        if self._located.rotary is not None:
            kind = self._layer.rope_layer_type
            cos, sin = self._located.rope_tables(torch.arange(prompt), kind)
            queries = rotate(queries, cos[-last:], sin[-last:])
            keys = rotate(keys, cos, sin)
        keys = keys.repeat_interleave(self._located.shape.queries_per_group, dim=0)
        scores = attention.scale * queries @ keys.transpose(1, 2)
        places = torch.arange(prompt, device=scores.device)
        distance = places[-last:, None] - places
        seen = (distance >= 0) & (distance < (self._layer.window or prompt))
        scores = scores.masked_fill(~seen, -torch.inf)
        received = scores.softmax(-1).sum((0, 1))
        return F.avg_pool1d(received[None], _POOLED, 1, _POOLED // 2)[0]

    def _note_queries(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._queries = output

    def _note_keys(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._keys = output
