"""A decoder whose shallow tokens can be told from others, and by their depth."""

import torch

from pruners.reading.reader import PromptReader
from server.engine.backends.base import Segment
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from tests.support.tiny import VOCAB

NUMBERS = torch.arange(VOCAB) % 25 == 0
"""Tokens that count as numbers."""
SHALLOW = PromptReader("read-33", depth=1, last=5)
DEEPER = PromptReader("read-66", depth=2, last=5)
WITH_NUMBERS = PromptReader("read-40", depth=1, last=5, numbers=True)


class SubstitutingDecoder(PyTorchDecoder):
    """Computes a shallow token of depth d as another token, so that an oracle needs no maps.

    `segments` are all that it was given.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.segments: list[Segment] = []

    def forward(self, segments: list[Segment]) -> torch.Tensor:
        self.segments += segments
        return super().forward([_substituted(segment) for segment in segments])


def substitute(token: int, depth: int) -> int:
    return (token + 50 * depth) % VOCAB


def as_read(prompt: list[int], reader: PromptReader, numbers: torch.Tensor | None = None) -> list:
    """Return the prompt that the decoder computes in place of one that is read by a reader.

    Written beside `PromptReader.shallow`, not with it.
    """
    read = list(prompt)
    for place in range(4, len(prompt) - reader.last):
        if numbers is None or not any(numbers[token] for token in prompt[place : place + 4]):
            read[place] = substitute(prompt[place], reader.depth)
    return read


def _substituted(segment: Segment) -> Segment:
    if segment.shallow is None:
        return segment
    assert len(segment.shallow) == len(segment.tokens)
    assert any(segment.shallow)
    if segment.outputs:
        assert not any(segment.shallow[-segment.outputs :]), "a shallow token is no output"
    tokens = [
        substitute(token, segment.depth) if shallow else token
        for token, shallow in zip(segment.tokens, segment.shallow, strict=True)
    ]
    return Segment(tokens, segment.cache, segment.variant, segment.outputs)
