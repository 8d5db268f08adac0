"""A reader: for each token of a prompt, how many layers it runs through."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruners.architecture import Shape
from pruners.kv.base import SINK_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FULL = "full"
"""The name of reading every token through all layers, which needs no reader."""

_DIGIT = re.compile(r"\d")
BEFORE_NUMBER = 3
"""So many tokens before each number are read in full with it: they say what it is the number of."""


@dataclass(frozen=True, slots=True)
class PromptReader:
    """How a prompt is read.

    Every token runs through the first `depth` layers. The first `SINK_TOKENS` tokens and the `last`
    ones run through all layers. So do, with `numbers`, tokens of numbers and the `BEFORE_NUMBER`
    ones before each, which a later question may look up, and the share `attended` (0..1) of the
    prompt that its `last` tokens attend to most in layer `depth - 1`. The keys and values of all
    other tokens in the layers from `depth` on come from linear maps.
    """

    name: str
    depth: int
    last: int = 32
    numbers: bool = False
    attended: float = 0.0

    def shallow(self, prompt: Tensor, numbers: Tensor | None = None) -> Tensor:
        """Return which tokens of a prompt `[tokens]` may be shallow, bool `[tokens]`.

        `numbers` bool `[vocab]` says which tokens are of numbers. What the prompt's end attends to
        is not taken out yet. Raise `ValueError` for a reader with `numbers` that is not told them.
        """
        places = torch.arange(len(prompt))
        found = (places >= SINK_TOKENS) & (places < len(prompt) - self.last)
        if not self.numbers:
            return found
        if numbers is None:
            raise ValueError(f"reader {self.name} has to be told which tokens are numbers")
        number = numbers[prompt]
        near = number.clone()
        for distance in range(1, BEFORE_NUMBER + 1):
            near[:-distance] |= number[distance:]
        return found & ~near

    def check(self, shape: Shape) -> None:
        """Raise `ValueError` if no model of this shape can be read so."""
        if not 0 < self.depth <= shape.layers:
            raise ValueError(f"reader {self.name}: depth {self.depth} of {shape.layers} layers")
        if self.last < 1 or not 0 <= self.attended < 1:
            raise ValueError(f"reader {self.name}: reads {self.last} last tokens, {self.attended}")

    def cost(self, shape: Shape, prompt: int, full: int) -> float:
        """Return the share of the base's multiply-adds for a prompt of which `full` are in full.

        Attention's own products are left out of both: they are below 5 % up to 1,000 tokens at
        the default model's sizes.
        """
        kv = 2 * shape.kv_groups * shape.head_dim
        layer = shape.hidden * (2 * shape.heads * shape.head_dim + kv + 3 * shape.ffn)
        above = shape.layers - self.depth
        shallow = (self.depth * layer + above * shape.hidden * kv) / (shape.layers * layer)
        return (full + (prompt - full) * shallow) / prompt


def number_tokens(tokenizer: "PreTrainedTokenizerBase", vocab: int) -> Tensor:
    """Return which tokens have a digit, bool `[vocab]`."""
    texts = tokenizer.convert_ids_to_tokens(range(min(vocab, len(tokenizer))))
    found = torch.zeros(vocab, dtype=torch.bool)
    found[: len(texts)] = torch.tensor([bool(_DIGIT.search(text or "")) for text in texts])
    found[list(_special(tokenizer.all_special_ids, vocab))] = False
    return found


def _special(ids: Iterable[int], vocab: int) -> Iterable[int]:
    return (token for token in ids if token < vocab)
