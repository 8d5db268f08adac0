"""Make a `transformers` model read as a reader says while a context is open, to measure it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pruners.architecture import LocatedModel
from pruners.reading.maps import KVMaps, features
from pruners.reading.reader import PromptReader
from pruners.reading.tail_attention import TailAttention


@contextmanager
def read_by(
    located: LocatedModel,
    reader: PromptReader,
    maps: KVMaps,
    prompts: Tensor,
    tokens: Tensor,
    kinds: Tensor | None = None,
) -> Iterator[Callable[[], Tensor]]:
    """Give shallow prompt tokens mapped keys and values in the layers from `reader.depth` on.

    `prompts` `[rows]` says how many of each row's `tokens` `[rows, length]` are its prompt,
    `kinds` `[vocab]` what kind each token is. Yields a function that returns,
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
        shallow[row, :prompt] = reader.shallow(tokens[row, :prompt], kinds)
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
        self._tail = TailAttention(located, reader.depth - 1, reader.last)

    def hooks(self) -> Iterator[Any]:
        """Attach all hooks and yield their handles."""
        layers, depth = self._located.layers, self._reader.depth
        if self._reader.attended:
            yield from self._tail.hooks()
        if depth < len(layers):
            yield layers[depth].module.register_forward_pre_hook(self._enter)
        for index in range(depth, len(layers)):
            attention = layers[index].attention
            yield attention.k.register_forward_hook(self._mapped(index, 0))
            yield attention.v.register_forward_hook(self._mapped(index, 1))

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
                scores = self._tail.scores(row, prompt).masked_fill(
                    ~self.shallow[row, :prompt], -1.0
                )
                chosen[row, scores.topk(min(count, prompt)).indices] = True
        return chosen
