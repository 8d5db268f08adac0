"""How deep each token of a prompt is read, as the engine keeps it: one byte a token."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from pruners.reading.reader import PromptReader

FULL_DEPTH = 255
"""The depth of a token that runs through all layers. Any other depth is a number of layers."""


class ReadingDepths:
    """Works out how deep the tokens of prompts are read. Any thread may call it.

    `layers` is the model's number of layers. `readers` are the served ones by name; None stands for
    reading in full. `token_kinds` int8 `[vocab]` are those of tokens, for readers.
    """

    def __init__(
        self,
        layers: int,
        readers: Iterable[PromptReader] = (),
        token_kinds: Tensor | None = None,
    ) -> None:
        self.readers: dict[str | None, PromptReader | None] = {None: None}
        self.readers.update((reader.name, reader) for reader in readers)
        self._layers = layers
        self._token_kinds = token_kinds

    def of(self, prompt: Sequence[int], reader: PromptReader | None) -> bytes:
        """Return the depth of each token of a prompt. Raise `ValueError` for no served reader."""
        if reader is None or reader.depth >= min(self._layers, FULL_DEPTH):
            return full_depths(len(prompt))
        if reader.attended:
            raise ValueError(f"reader {reader.name}: what the prompt's end attends to is not known")
        shallow = reader.shallow(torch.tensor(prompt), self._token_kinds)
        return shallow.numpy().tobytes().translate(bytes([FULL_DEPTH, reader.depth]) + bytes(254))


def shallow_tokens(depths: bytes, count: int) -> tuple[list[bool] | None, int]:
    """Return which of `count` tokens are shallow, and their depth in layers.

    `depths` are those of the first of them, where all shallow ones are equally deep; the others are
    read in full. None if none is shallow.
    """
    depth = min(depths, default=FULL_DEPTH)
    if depth == FULL_DEPTH:
        return None, 0
    return [one == depth for one in depths] + [False] * (count - len(depths)), depth


def depth_changes(depths: bytes) -> list[int]:
    """Return the places of shallow tokens that are not as deep as the shallow one before."""
    places: list[int] = []
    latest = None
    for place, depth in enumerate(depths) if len(set(depths)) > 2 else ():
        if depth not in (FULL_DEPTH, latest):
            places.append(place)
            latest = depth
    return places


def count_shallow(depths: bytes) -> int:
    """Return how many tokens do not run through all layers."""
    return len(depths) - depths.count(FULL_DEPTH)


def full_depths(tokens: int) -> bytes:
    """Return the depths of tokens that are read in full."""
    return bytes([FULL_DEPTH]) * tokens
