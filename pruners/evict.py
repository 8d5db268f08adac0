"""The `evict` realization for measuring: attention sees only what a KV budget would have kept."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from pruners.architecture import Decoder

SINKS = 4
"""First tokens that every budget keeps; attention rests on them (arXiv 2309.17453)."""


@contextmanager
def streaming(decoder: Decoder, prompt: int, sinks: int, recent: int) -> Iterator[None]:
    """Sinks and recent window (StreamingLLM, Xiao et al. 2023, arXiv 2309.17453).

    The first `prompt` tokens of each row read each other in full, as in a prefill before eviction.
    Every later token attends to the first `sinks` tokens and the last `recent` ones, itself among
    them; keys keep their true rotary positions. Nothing is freed here. Rows must not be padded on
    the left. Raises `ValueError` if the window is empty.
    """
    if sinks < 0 or recent < 1:
        raise ValueError(f"KV budget of {sinks} sinks and {recent} recent tokens keeps nothing")

    def restrict(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        hidden = args[0]
        allowed = visible(hidden.shape[1], prompt, sinks, recent).to(hidden.device)
        return args, {**kwargs, "attention_mask": _both(kwargs["attention_mask"], allowed)}

    with ExitStack() as hooks:
        for layer in decoder.layers:
            hook = layer.module.register_forward_pre_hook(restrict, with_kwargs=True)
            hooks.callback(hook.remove)
        yield


def visible(length: int, prompt: int, sinks: int, recent: int) -> torch.Tensor:
    """`[length, length]`: may the token of this row read the key of that column?"""
    query = torch.arange(length)[:, None]
    key = torch.arange(length)[None, :]
    kept = (query < prompt) | (key < sinks) | (query - key < recent)
    return (key <= query) & kept


def _both(mask: torch.Tensor | None, allowed: torch.Tensor) -> torch.Tensor:
    """Narrows the model's own mask: none at all, boolean or additive, `[rows, 1, query, key]`."""
    if mask is None:
        return allowed[None, None]
    if mask.dtype == torch.bool:
        return mask & allowed
    return mask.masked_fill(~allowed, torch.finfo(mask.dtype).min)
