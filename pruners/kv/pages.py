"""Page-wise selection: each query attends to the pages of cached tokens that may matter to it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import DynamicCache

from pruners.architecture import LocatedLayer, LocatedModel, UnsupportedModelError
from pruners.data.rows import TokenBatch
from pruners.kv.base import SINK_TOKENS, rotate


@dataclass(frozen=True, slots=True)
class PageSelection:
    """Lets each written token attend to at most `budget` cached tokens; none is forgotten.

    Cached tokens form pages of `page` tokens in the order of the text. A page's bound is the
    highest score that a key between the elementwise minimum and maximum of its keys could have:
    `sum_i max(q_i * min_i, q_i * max_i)`. The query heads of a KV group share their pages: those of
    the highest softmax of bounds, the mean over these heads. The pages of the first `sinks` tokens
    are always taken, and those of the last `recent`, which have no bound and no part in the
    softmax. It is Quest (Tang et al. 2024, arXiv 2406.10774) by KV groups. Raises `ValueError` for
    a budget that is too small.
    """

    budget: int
    page: int = 16
    sinks: int = SINK_TOKENS
    recent: int = 16

    def __post_init__(self) -> None:
        least = (-(-self.sinks // self.page) + -(-self.recent // self.page) + 1) * self.page
        if self.page < 1 or self.budget < least:
            raise ValueError(
                f"a budget of {self.budget} tokens holds no page besides the first and the last; "
                f"with pages of {self.page} give at least {least}"
            )

    def select(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Return which tokens each query attends to, bool `[rows, kv_groups, new, tokens]`.

        `queries` `[rows, heads, new, head_dim]` are those of the last `new` tokens, `keys`
        `[rows, kv_groups, tokens, head_dim]` all keys up to the last of them, both after the rotary
        embedding. Attention weights are `softmax(scale * q k^T)`.
        """
        tokens, new = keys.shape[2], queries.shape[2]
        pages = -(-tokens // self.page)
        room = pages * self.page - tokens
        lowest, highest = (
            F.pad(keys, (0, 0, 0, room), value=end).unflatten(2, (pages, self.page))
            for end in (torch.inf, -torch.inf)
        )
        grouped = queries.unflatten(1, (keys.shape[1], -1))  # [rows, groups, heads of it, new, dim]
        bounds = scale * (
            torch.einsum("bghnd,bgpd->bghnp", grouped.clamp(min=0), highest.amax(3))
            + torch.einsum("bghnd,bgpd->bghnp", grouped.clamp(max=0), lowest.amin(3))
        )
        first = torch.arange(pages, device=keys.device) * self.page
        now = torch.arange(tokens - new, tokens, device=keys.device)[:, None]
        latest = first + self.page > now + 1 - self.recent  # and later ones
        scores = bounds.masked_fill(latest, -torch.inf).softmax(-1).nan_to_num().mean(2)
        scores = scores.masked_fill(latest | (first < self.sinks), torch.inf)
        scores = scores.masked_fill(first > now, -torch.inf)
        chosen = scores.topk(min(self.budget // self.page, pages), -1).indices
        taken = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
        return taken.repeat_interleave(self.page, -1)[..., :tokens] & (
            torch.arange(tokens, device=keys.device) <= now
        )


@torch.no_grad()
def forward_with_pages(
    located: LocatedModel, batch: TokenBatch, prompt: int, selection: PageSelection
) -> Tensor:
    """Return the final hidden states `[rows, length, hidden]` under page-wise selection.

    The first `prompt` tokens of each row attend to all before them, the others to the pages that
    `selection` takes for each. Raises `ValueError` if rows differ in length or there are no other
    tokens, and `UnsupportedModelError` for an encoder.
    """
    if not located.causal:
        raise UnsupportedModelError("an encoder has no KV cache to select from")
    length = batch.tokens.shape[1]
    if not bool(batch.valid.all()) or prompt >= length:
        raise ValueError(f"rows must be equally long, and longer than their prompts of {prompt}")
    body: Any = located.model.base_model
    tokens = batch.tokens.to(located.embed.weight.device)
    cache = DynamicCache()  # without the configuration, so that no layer crops its cache
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

    def heads(hidden: Tensor, projection: nn.Linear, norm: nn.Module | None) -> Tensor:
        """Return `[rows, heads, new, head_dim]` as attention uses them."""
        found = projection(hidden).unflatten(-1, (-1, shape.head_dim))
        found = (found if norm is None else norm(found)).transpose(1, 2)
        if located.rotary is None:
            return found
        return rotate(found, *located.rope_tables(positions, layer.rope_layer_type))

    def set_mask(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0] if args else kwargs["hidden_states"]
        queries = heads(hidden, attention.q, attention.q_norm)
        new = heads(hidden, attention.k, attention.k_norm)
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
