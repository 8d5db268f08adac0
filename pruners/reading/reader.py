"""A reader: for each token of a prompt, how many layers it runs through."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pruners.architecture import Shape
from pruners.kv.base import SINK_TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FULL = "full"
"""The name of reading every token through all layers, which needs no reader."""

_DIGIT = re.compile(r"^(?!<0x[0-9A-F]{2}>$).*\d", re.DOTALL)  # the name of a byte is no number
NUMBER, SPECIAL = 1, 2
"""Kinds of tokens: those with a digit, and those that mark turns; all others are 0."""
BEFORE_NUMBER = 3
"""So many tokens before each number are read in full with it: they say what it is the number of."""


@dataclass(frozen=True, slots=True)
class PromptReader:
    """How a prompt is read.

    Every token runs through the first `depth` layers. Through all layers run the first
    `SINK_TOKENS` tokens, the `last` ones, and the first `turn` ones after each special token: where
    a turn of a conversation begins stands what is asked. So do, with `numbers`, tokens with a digit
    and the `BEFORE_NUMBER` ones before each, which a later question may look up, and the share
    `attended` (0..1) of the prompt that its `last` tokens attend to most in layer `depth - 1`. The
    keys and values of all other tokens in the layers from `depth` on come from linear maps.
    """

    name: str
    depth: int
    last: int = 32
    turn: int = 24
    numbers: bool = False
    attended: float = 0.0

    @property
    def ends(self) -> int:
        """Return how many tokens of a prompt of one turn are always read in full."""
        return SINK_TOKENS + self.turn + self.last

    def shallow(self, prompt: Tensor, kinds: Tensor | None = None) -> Tensor:
        """Return which tokens of a prompt `[tokens]` may be shallow, bool `[tokens]`.

        `kinds` `[vocab]` are those of `token_kinds`; without them no token begins a turn. What the
        prompt's end attends to is not taken out yet. Raise `ValueError` for a reader with `numbers`
        that is not told them.
        """
        count = len(prompt)
        found = np.zeros(count, dtype=bool)
        found[SINK_TOKENS : max(count - self.last, 0)] = True
        if kinds is None:
            if self.numbers:
                raise ValueError(f"reader {self.name} has to be told which tokens are numbers")
            return torch.from_numpy(found)
        # NumPy: a decision waits for this, and PyTorch's calls take several times as long.
        kind = kinds.numpy()[prompt.numpy()]
        places = np.arange(count)
        latest = np.maximum.accumulate(np.where(kind == SPECIAL, places, -1 - self.turn))
        found &= places - latest > self.turn
        if self.numbers:
            number = kind == NUMBER
            near = number.copy()
            for distance in range(1, BEFORE_NUMBER + 1):
                near[:-distance] |= number[distance:]
            found &= ~near
        return torch.from_numpy(found)

    def check(self, shape: Shape) -> None:
        """Raise `ValueError` if no model of this shape can be read so."""
        if not 0 < self.depth <= shape.layers:
            raise ValueError(f"reader {self.name}: depth {self.depth} of {shape.layers} layers")
        if self.last < 1 or self.turn < 0 or not 0 <= self.attended < 1:
            raise ValueError(
                f"reader {self.name}: last {self.last}, turn {self.turn}, attended {self.attended}"
            )

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


def token_kinds(tokenizer: "PreTrainedTokenizerBase", vocab: int) -> Tensor:
    """Return the kind of each token, int8 `[vocab]`: `NUMBER`, `SPECIAL` or 0."""
    known = min(vocab, len(tokenizer))
    texts = tokenizer.convert_ids_to_tokens(range(known))
    kinds = torch.zeros(vocab, dtype=torch.int8)
    kinds[:known] = torch.tensor([NUMBER if _DIGIT.search(text or "") else 0 for text in texts])
    added = {token for token, one in tokenizer.added_tokens_decoder.items() if one.special}
    special = added | set(tokenizer.all_special_ids)
    kinds[[token for token in special if token < vocab]] = SPECIAL
    return kinds
