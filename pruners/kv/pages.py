"""The `select` realization: run `transformers` with queries that attend to chosen pages."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from pruners.architecture import LocatedLayer, LocatedModel, UnsupportedModelError
from pruners.data.rows import TokenBatch
from pruners.kv.base import rotate
from pruners.kv.page_selection import PageSelection
from pruners.kv.transformers_cache import PromptReading, read_in_full


@torch.no_grad()
def forward_with_pages(
    located: LocatedModel,
    batch: TokenBatch,
    prompt: int,
    selection: PageSelection,
    reading: PromptReading = read_in_full,
) -> Tensor:
    """Return the final hidden states `[rows, length, hidden]` under page-wise selection.

    The first `prompt` tokens of each row are read within `reading` and attend to all before them,
    the others to the pages that `selection` takes for each. Raises `ValueError` if rows differ in
    length or there are no other tokens, and `UnsupportedModelError` for an encoder.
    """
    if not located.causal:
        raise UnsupportedModelError("an encoder has no KV cache to select from")
    length = batch.tokens.shape[1]
    if not bool(batch.valid.all()) or prompt >= length:
        raise ValueError(f"rows must be equally long, and longer than their prompts of {prompt}")
    body: Any = located.model.base_model
    tokens = batch.tokens.to(located.embed.weight.device)
    cache = DynamicCache()  # without the configuration, so that no layer crops its cache
    with reading(tokens[:, :prompt]):
        read = body(tokens[:, :prompt], past_key_values=cache, use_cache=True).last_hidden_state
    positions = torch.arange(prompt, length, device=tokens.device)
    with _selecting(located, cache, positions, selection):
        written = body(
            tokens[:, prompt:],
            past_key_values=cache,
            position_ids=positions.expand(len(tokens), -1),
            use_cache=True,
        ).last_hidden_state
    hidden = torch.cat([read, written], dim=1)
    return located.final_norm(hidden) if located.norm_in_head else hidden


@contextmanager
def _selecting(
    located: LocatedModel, cache: DynamicCache, positions: Tensor, selection: PageSelection
) -> Iterator[None]:
    """Mask the attention of the tokens at `positions` `[new]`, while the context is open."""
    with ExitStack() as hooks:
        for index, layer in enumerate(located.layers):
            keys = partial(_cached_keys, cache, index)
            hook = _mask_hook(located, layer, positions, selection, keys)
            module = layer.attention.module
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _cached_keys(cache: DynamicCache, index: int) -> Tensor:
    return cache.layers[index].keys


def _mask_hook(
    located: LocatedModel,
    layer: LocatedLayer,
    positions: Tensor,
    selection: PageSelection,
    cached_keys: Callable[[], Tensor],
) -> Callable[..., Any]:
    attention, shape = layer.attention, located.shape

    def rotated(heads: Tensor) -> Tensor:
        """Return `[rows, heads, new, head_dim]` as attention uses them."""
        found = heads.transpose(1, 2)
        if located.rotary is None:
            return found
        return rotate(found, *located.rope_tables(positions, layer.rope_layer_type))

    def set_mask(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        queries = rotated(attention.query_heads(attention.q(hidden), shape.head_dim))
        new = rotated(attention.key_heads(attention.k(hidden), shape.head_dim))
        keys = torch.cat([cached_keys(), new], dim=2)
        seen = selection.select(queries.float(), keys.float(), attention.scale)
        if layer.window is not None:
            distance = positions[:, None] - torch.arange(keys.shape[2], device=keys.device)
            seen = seen & (distance < layer.window)
        mask = torch.zeros(seen.shape, dtype=hidden.dtype, device=hidden.device)
        mask = mask.masked_fill(~seen, torch.finfo(hidden.dtype).min)
        return args, {
            **kwargs,
            "attention_mask": mask.repeat_interleave(shape.queries_per_group, dim=1),
        }

    return set_mask
