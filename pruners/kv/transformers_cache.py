"""The `evict` realization: `transformers` over a cache out of which tokens are really deleted."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pruners.architecture import LocatedModel, UnsupportedModelError
from pruners.data.rows import TokenBatch
from pruners.kv.base import CachedTokens
from pruners.kv.eviction import RECENT_QUERIES, Eviction


@torch.no_grad()
def forward_with_eviction(
    located: LocatedModel, batch: TokenBatch, prompt: int, eviction: Eviction
) -> Tensor:
    """Final hidden states `[rows, length, hidden]`, those behind `prompt` over evicted caches.

    Rows must be of equal length. Raises `UnsupportedModelError` for an encoder.
    """
    if not located.causal:
        raise UnsupportedModelError("an encoder has no KV cache to evict from")
    if not bool(batch.valid.all()):
        raise ValueError("rows of one batch must be equally long to be evicted from")
    length = batch.tokens.shape[1]
    body: Any = located.model.base_model
    device = located.embed.weight.device
    cache = DynamicCache()  # without the configuration: no layer crops itself
    parts: list[Tensor] = []
    bounds = sorted({0, *range(prompt, length, eviction.interval), length})
    with _watching(located) as watch:
        for start, stop in pairwise(bounds):
            if start:
                _evict(located, cache, watch, eviction, coming=stop - start)
            positions = torch.arange(start, stop, device=device).expand(len(batch.tokens), -1)
            watch.enter(positions)
            parts.append(
                body(
                    batch.tokens[:, start:stop].to(device),
                    past_key_values=cache,
                    position_ids=positions,
                    use_cache=True,
                ).last_hidden_state
            )
    hidden = torch.cat(parts, dim=1)
    return located.final_norm(hidden) if located.norm_in_head else hidden


class _Watch:
    """What the layers' hooks note: the latest queries, and where each cached token stands."""

    def __init__(self, layers: int) -> None:
        self.queries: list[Tensor] = []
        self.cached: list[Tensor] = []  # positions, `[rows, tokens]`
        self.now = torch.empty(0)
        self._layers = layers

    def enter(self, positions: Tensor) -> None:
        """These positions, `[rows, new]`, are about to be read."""
        self.now = positions
        known = self.cached or [positions[:, :0]] * self._layers
        self.cached = [torch.cat([held, positions], dim=1) for held in known]

    def note(self, layer: int, queries: Tensor) -> None:
        """`queries` are `[rows, heads, new, dim]`, not rotated."""
        if layer == len(self.queries):
            self.queries.append(queries[:, :, -RECENT_QUERIES:])
        else:
            both = torch.cat([self.queries[layer], queries], dim=2)
            self.queries[layer] = both[:, :, -RECENT_QUERIES:]

    def mask(self, layer: int, window: int, dtype: torch.dtype) -> Tensor:
        """Additive `[rows, 1, new, tokens]` by true positions, not by places in the cache."""
        distance = self.now[:, :, None] - self.cached[layer][:, None, :]
        hidden = (distance < 0) | (distance >= window)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]


@contextmanager
def _watching(located: LocatedModel) -> Iterator[_Watch]:
    watch = _Watch(len(located.layers))
    with ExitStack() as hooks:
        for index, layer in enumerate(located.layers):
            queries = _noting(located, watch, index)
            hooks.callback(layer.attention.q.register_forward_hook(queries).remove)
            if layer.window is not None:
                hook = _masking(watch, index, layer.window, located.embed.weight.dtype)
                module = layer.attention.module
                hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield watch


def _noting(located: LocatedModel, watch: _Watch, index: int) -> Callable[..., None]:
    heads = (located.shape.heads, located.shape.head_dim)
    norm = located.layers[index].attention.q_norm

    def note(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        queries = output.unflatten(-1, heads)
        watch.note(index, (queries if norm is None else norm(queries)).transpose(1, 2))

    return note


def _masking(watch: _Watch, index: int, window: int, dtype: torch.dtype) -> Callable[..., Any]:
    def restrict(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "attention_mask": watch.mask(index, window, dtype)}

    return restrict


def _evict(
    located: LocatedModel, cache: DynamicCache, watch: _Watch, eviction: Eviction, coming: int
) -> None:
    """Leaves room for `coming` tokens in every layer's cache."""
    keep = eviction.budget - coming
    for index, (layer, held) in enumerate(zip(located.layers, cache.layers, strict=True)):
        keys, values = held.keys, held.values
        if keys.shape[2] <= keep:
            continue
        seen = CachedTokens(
            positions=watch.cached[index],
            keys=keys,
            values=values,
            queries=watch.queries[index],
            position=int(watch.now[0, -1]),
            scale=layer.attention.scale,
            rope=None
            if located.rotary is None
            else partial(located.rope_tables, layer_type=layer.rope_layer_type),
        )
        kept = eviction.select(seen, keep)
        taken = kept[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        held.keys, held.values = keys.gather(2, taken), values.gather(2, taken)
        watch.cached[index] = watch.cached[index].gather(1, kept)
