"""Make a `transformers` model drop prompt tokens between layers, to measure what that loses."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruners.architecture import LocatedModel
from pruners.kv.base import SINK_TOKENS
from pruners.reading.tail_attention import TailAttention


@dataclass(frozen=True, slots=True)
class TokenDropping:
    """From layer `depth` on, only the share `keep` (0..1) of the prompt's tokens is left.

    Kept are the first `SINK_TOKENS` tokens, the `last` ones, and those that the last ones attend to
    most in layer `depth - 1`. Dropped tokens have no keys and values in the layers from `depth` on,
    neither for the rest of the prompt nor for the answer. It is one step of LazyLLM (Fu et al.
    2024, arXiv 2407.14057).
    """

    name: str
    depth: int
    keep: float
    last: int = 16

    def dropped(self, scores: Tensor) -> Tensor:
        """Return which tokens of a prompt are dropped, bool `[tokens]`, for their attention."""
        places = torch.arange(len(scores), device=scores.device)
        always = (places < SINK_TOKENS) | (places >= len(scores) - self.last)
        count = max(int(always.sum()), round(self.keep * len(scores)))
        kept = scores.masked_fill(always, torch.inf).topk(count).indices
        return torch.ones_like(always).index_fill_(0, kept, False)


@contextmanager
def drop_tokens(
    located: LocatedModel, dropping: TokenDropping, prompts: Tensor, tokens: Tensor
) -> Iterator[Callable[[], Tensor]]:
    """Drop prompt tokens as `dropping` says, while the context is open.

    `prompts` `[rows]` says how many of each row's `tokens` `[rows, length]` are its prompt. Yields
    a function that returns, after a forward pass, which tokens were dropped, bool
    `[rows, length]`. Weights are never touched and all hooks are gone on exit. Raises `ValueError`
    if the model has no such depth.
    """
    if not 0 < dropping.depth < located.shape.layers:
        raise ValueError(f"dropping at depth {dropping.depth} of {located.shape.layers} layers")
    hooks = _DroppingHooks(located, dropping, prompts, torch.zeros_like(tokens, dtype=torch.bool))
    with ExitStack() as stack:
        for handle in hooks.hooks():
            stack.callback(handle.remove)
        yield lambda: hooks.dropped


class _DroppingHooks:
    """One forward pass: dropped tokens become invisible to all others above the depth."""

    def __init__(
        self, located: LocatedModel, dropping: TokenDropping, prompts: Tensor, dropped: Tensor
    ) -> None:
        self.dropped = dropped
        self._located = located
        self._dropping = dropping
        self._prompts = prompts
        self._tail = TailAttention(located, dropping.depth - 1, dropping.last)

    def hooks(self) -> Iterator[Any]:
        """Attach all hooks and yield their handles."""
        depth, layers = self._dropping.depth, self._located.layers
        yield from self._tail.hooks()
        yield layers[depth].module.register_forward_pre_hook(self._choose)
        for layer in layers[depth:]:
            hook = self._hiding(layer.window)
            yield layer.attention.module.register_forward_pre_hook(hook, with_kwargs=True)

    def _choose(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.dropped = self.dropped.to(args[0].device)
        for row, prompt in enumerate(self._prompts.tolist()):
            scores = self._tail.scores(row, prompt)
            self.dropped[row, :prompt] = self._dropping.dropped(scores)

    def _hiding(self, window: int | None) -> Callable[..., Any]:
        def hide(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return args, {**kwargs, "attention_mask": self._mask(window)}

        return hide

    def _mask(self, window: int | None) -> Tensor:
        """Return the additive mask `[rows, 1, length, length]`; all tokens see themselves."""
        places = torch.arange(self.dropped.shape[1], device=self.dropped.device)
        distance = places[:, None] - places
        hidden = (distance < 0) | (self.dropped[:, None] & (distance != 0))
        if window is not None:
            hidden = hidden | (distance >= window)
        dtype = self._located.embed.weight.dtype
        mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return mask.masked_fill(hidden, torch.finfo(dtype).min)[:, None]
