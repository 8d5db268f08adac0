"""The `evict` realization: run `transformers` with a cache from which tokens are deleted."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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

PromptReading = Callable[[Tensor], AbstractContextManager[object]]
"""Returns a context in which the model reads prompts `[rows, prompt]` in a way of its own."""


def read_in_full(prompts: Tensor) -> AbstractContextManager[None]:
    """Return a context in which prompts are read through all layers."""
    return nullcontext()


@torch.no_grad()
def forward_with_eviction(
    located: LocatedModel,
    batch: TokenBatch,
    prompt: int,
    eviction: Eviction,
    reading: PromptReading = read_in_full,
) -> Tensor:
    """Return the final hidden states `[rows, length, hidden]` under a KV budget.

    The first `prompt` tokens of each row are processed with a full cache within `reading`, the
    others with a cache from which `eviction` deletes tokens. Raises `ValueError` if rows differ in
    length, and `UnsupportedModelError` for an encoder.
    """
    if not located.causal:
        raise UnsupportedModelError("an encoder has no KV cache to evict from")
    if not bool(batch.valid.all()):
        raise ValueError("rows of one batch must be equally long to be evicted from")
    length = batch.tokens.shape[1]
    body: Any = located.model.base_model
    device = located.embed.weight.device
    cache = DynamicCache()  # without the configuration, so that no layer crops its cache
    parts: list[Tensor] = []
    bounds = sorted({0, *range(prompt, length, eviction.interval), length})
    with _recording(located) as recorder:
        for start, stop in pairwise(bounds):
            if start:
                _evict(located, cache, recorder, eviction, coming=stop - start)
            positions = torch.arange(start, stop, device=device).expand(len(batch.tokens), -1)
            recorder.begin(positions)
            tokens = batch.tokens[:, start:stop].to(device)
            with reading(tokens) if start == 0 else nullcontext():
                output = body(tokens, past_key_values=cache, position_ids=positions, use_cache=True)
            parts.append(output.last_hidden_state)
    hidden = torch.cat(parts, dim=1)
    return located.final_norm(hidden) if located.norm_in_head else hidden


class _CacheRecorder:
    """The latest queries of each layer and the positions of its cached tokens, from hooks."""

    def __init__(self, layers: int) -> None:
        self.queries: list[Tensor] = []
        self.cached_positions: list[Tensor] = []  # of each layer, `[rows, tokens]`
        self.new_positions = torch.empty(0)
        self._layers = layers

    def begin(self, positions: Tensor) -> None:
        """Record the positions `[rows, new]` of the tokens that are processed next."""
        self.new_positions = positions
        known = self.cached_positions or [positions[:, :0]] * self._layers
        self.cached_positions = [torch.cat([cached, positions], dim=1) for cached in known]

    def add_queries(self, layer: int, queries: Tensor) -> None:
        """Record queries `[rows, heads, new, head_dim]` before the rotary embedding."""
        if layer == len(self.queries):
            self.queries.append(queries[:, :, -RECENT_QUERIES:])
        else:
            joined = torch.cat([self.queries[layer], queries], dim=2)
            self.queries[layer] = joined[:, :, -RECENT_QUERIES:]

    def mask(self, layer: int, window: int, dtype: torch.dtype) -> Tensor:
        """Return an additive attention mask `[rows, 1, new, tokens]` for a sliding window.

        It compares positions in the text, since indices in the cache change with each eviction.
        """
        distance = self.new_positions[:, :, None] - self.cached_positions[layer][:, None, :]
        hidden = (distance < 0) | (distance >= window)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]


@contextmanager
def _recording(located: LocatedModel) -> Iterator[_CacheRecorder]:
    recorder = _CacheRecorder(len(located.layers))
    with ExitStack() as hooks:
        for index, layer in enumerate(located.layers):
            queries = _record_queries_hook(located, recorder, index)
            hooks.callback(layer.attention.q.register_forward_hook(queries).remove)
            if layer.window is not None:
                hook = _sliding_mask_hook(recorder, index, layer.window, located.embed.weight.dtype)
                module = layer.attention.module
                hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield recorder


def _record_queries_hook(
    located: LocatedModel, recorder: _CacheRecorder, index: int
) -> Callable[..., None]:
    attention, dim = located.layers[index].attention, located.shape.head_dim

    def record(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        recorder.add_queries(index, attention.query_heads(output, dim).transpose(1, 2))

    return record


def _sliding_mask_hook(
    recorder: _CacheRecorder, index: int, window: int, dtype: torch.dtype
) -> Callable[..., Any]:
    def set_mask(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {**kwargs, "attention_mask": recorder.mask(index, window, dtype)}

    return set_mask


def _evict(
    located: LocatedModel,
    cache: DynamicCache,
    recorder: _CacheRecorder,
    eviction: Eviction,
    coming: int,
) -> None:
    """Delete cached tokens in every layer until `coming` more fit into the budget."""
    keep = eviction.budget - coming
    for index, (layer, layer_cache) in enumerate(zip(located.layers, cache.layers, strict=True)):
        keys, values = layer_cache.keys, layer_cache.values
        if keys.shape[2] <= keep:
            continue
        cached = CachedTokens(
            positions=recorder.cached_positions[index],
            keys=keys,
            values=values,
            queries=recorder.queries[index],
            last_position=int(recorder.new_positions[0, -1]),
            scale=layer.attention.scale,
            rope=None
            if located.rotary is None
            else partial(located.rope_tables, layer_type=layer.rope_layer_type),
        )
        kept = eviction.select(cached, keep)
        index_of_kept = kept[:, None, :, None].expand(-1, keys.shape[1], -1, keys.shape[3])
        layer_cache.keys, layer_cache.values = (
            keys.gather(2, index_of_kept),
            values.gather(2, index_of_kept),
        )
        recorder.cached_positions[index] = recorder.cached_positions[index].gather(1, kept)
