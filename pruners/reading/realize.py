"""Make a `transformers` model read as a reader says while a context is open, to measure it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from pruners.architecture import LocatedModel
from pruners.kv.base import rotate
from pruners.reading.maps import KVMaps, features
from pruners.reading.reader import PromptReader

_POOLED = 5  # neighbouring tokens among which the most attended is taken


@contextmanager
def read_by(
    located: LocatedModel,
    reader: PromptReader,
    maps: KVMaps,
    prompts: Tensor,
    tokens: Tensor,
    names: Tensor | None = None,
) -> Iterator[Callable[[], Tensor]]:
    """Give shallow prompt tokens mapped keys and values in the layers from `reader.depth` on.

    `prompts` `[rows]` says how many of each row's `tokens` `[rows, length]` are its prompt, `names`
    `[vocab]` which tokens a reader with `names` reads in full. Yields a function that returns,
    after a forward pass, which tokens were shallow, bool `[rows, length]`. What the model itself
    computes for shallow tokens above the depth is overwritten before any other token sees it, so
    that all other tokens' hidden states are those of the reader. Weights are never touched and all
    hooks are gone on exit. Raises `ValueError` if the reader does not fit the model or its maps.
    """
    reader.check(located.shape)
    if maps.depth != reader.depth:
        raise ValueError(f"reader {reader.name}: depth {reader.depth}, its maps have {maps.depth}")
    shallow = torch.zeros_like(tokens, dtype=torch.bool)
    for row, prompt in enumerate(prompts.tolist()):
        shallow[row, :prompt] = reader.shallow(tokens[row, :prompt], names)
    reading = _ReadingHooks(located, reader, maps, prompts, shallow)
    with ExitStack() as hooks:
        for handle in reading.hooks():
            hooks.callback(handle.remove)
        yield lambda: reading.shallow


class _ReadingHooks:
    """One forward pass: what the hooks of its layers hand to each other."""

    def __init__(
        self,
        located: LocatedModel,
        reader: PromptReader,
        maps: KVMaps,
        prompts: Tensor,
        shallow: Tensor,
    ) -> None:
        self.shallow = shallow
        self._located = located
        self._reader = reader
        self._maps = maps
        self._prompts = prompts
        self._features = torch.empty(0)
        self._queries = torch.empty(0)
        self._keys = torch.empty(0)

    def hooks(self) -> Iterator[Any]:
        """Attach all hooks and yield their handles."""
        layers, depth = self._located.layers, self._reader.depth
        if self._reader.attended:
            below = layers[depth - 1].attention
            yield (below.q_norm or below.q).register_forward_hook(self._note_queries)
            yield (below.k_norm or below.k).register_forward_hook(self._note_keys)
        if depth < len(layers):
            yield layers[depth].module.register_forward_pre_hook(self._enter)
        for index in range(depth, len(layers)):
            attention = layers[index].attention
            yield attention.k.register_forward_hook(self._mapped(index, 0))
            yield attention.v.register_forward_hook(self._mapped(index, 1))

    def _note_queries(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._queries = output.flatten(2)

    def _note_keys(self, module: nn.Module, args: object, output: Tensor) -> None:
        self._keys = output.flatten(2)

    def _enter(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if self._reader.attended:
            self.shallow = self.shallow & ~self._attended()
        self.shallow = self.shallow.to(args[0].device)
        self._features = features(args[0][self.shallow])

    def _mapped(self, layer: int, half: int) -> Callable[..., Tensor]:
        def replace(module: nn.Module, args: object, output: Tensor) -> Tensor:
            result = output.clone()
            result[self.shallow] = self._maps.keys_values(layer, self._features)[half].to(output)
            return result

        return replace

    def _attended(self) -> Tensor:
        """Return which prompt tokens the prompt's end attends to most, bool `[rows, length]`."""
        chosen = torch.zeros_like(self.shallow)
        for row, prompt in enumerate(self._prompts.tolist()):
            count = int(self._reader.attended * prompt)
            if count:
                scores = self._scores(row, prompt).masked_fill(~self.shallow[row, :prompt], -1.0)
                chosen[row, scores.topk(min(count, prompt)).indices] = True
        return chosen

    def _scores(self, row: int, prompt: int) -> Tensor:
        """Return the attention that each prompt token gets from the last ones, `[prompt]`."""
        shape = self._located.shape
        layer = self._located.layers[self._reader.depth - 1]
        last = min(self._reader.last, prompt)
        queries = self._queries[row, prompt - last : prompt].unflatten(-1, (-1, shape.head_dim))
        keys = self._keys[row, :prompt].unflatten(-1, (-1, shape.head_dim))
        queries, keys = queries.transpose(0, 1).float(), keys.transpose(0, 1).float()
        if self._located.rotary is not None:
            cos, sin = self._located.rope_tables(torch.arange(prompt), layer.rope_layer_type)
            queries = rotate(queries, cos[-last:], sin[-last:])
            keys = rotate(keys, cos, sin)
        keys = keys.repeat_interleave(shape.queries_per_group, dim=0)
        scores = layer.attention.scale * queries @ keys.transpose(1, 2)
        places = torch.arange(prompt, device=scores.device)
        scores = scores.masked_fill(places > places[-last:, None], -torch.inf)
        attention = scores.softmax(-1).sum((0, 1))
        return F.avg_pool1d(attention[None], _POOLED, 1, _POOLED // 2)[0]
