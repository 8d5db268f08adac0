"""Constrained answers without a model: compiled grammars, and texts that follow one by chance."""

import asyncio
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
from torch import Tensor

from server.api.constrained.compiler import CompiledConstraint, ConstraintCompiler
from server.api.constrained.constraint import OutputConstraint
from server.api.openai.token_text import TokenText
from tests.support.tiny import VOCAB, tiny_tokenizer

END = 1
"""The end token of the tiny tokenizer."""


@dataclass
class Grammars:
    """Compiles constraints for a tokenizer of `vocab` tokens, which `ends` end."""

    tokenizer: object = field(default_factory=tiny_tokenizer)
    vocab: int = VOCAB
    ends: frozenset[int] = frozenset([END])

    def __post_init__(self) -> None:
        shape = SimpleNamespace(vocab=self.vocab)
        model = SimpleNamespace(
            tokenizer=self.tokenizer,
            weights=SimpleNamespace(shape=shape),
            eos_token_ids=self.ends,
        )
        self.compiler = ConstraintCompiler(model)  # type: ignore[arg-type]
        self.texts = TokenText(self.tokenizer)  # type: ignore[arg-type]

    def compile(self, constraint: OutputConstraint) -> CompiledConstraint:
        """Return the grammar of a constraint."""
        compiled = asyncio.run(self.compiler.compile(constraint))
        assert compiled is not None
        return compiled

    def written(self, constraint: OutputConstraint, seed: int, most: int = 2000) -> str:
        """Return a text of tokens that the masks allow, each chosen by chance."""
        matcher, chance = self.compile(constraint).matcher(self.ends), random.Random(seed)
        data = b""
        for _ in range(most):
            token = chance.choice(allowed_tokens(matcher.masks(())[0]))
            matcher.accept(token)
            if token not in self.ends:
                data += self.texts.data(token)
            if matcher.ended:
                return data.decode()
        raise AssertionError(f"no end: {data[:200]!r}")


def allowed_tokens(mask: Tensor) -> list[int]:
    """Return the tokens of a mask, int32 `[words]`."""
    bits = np.unpackbits(mask.numpy().view(np.uint8), bitorder="little")
    return bits.nonzero()[0].tolist()
