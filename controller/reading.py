"""How the prompt of a request may be read: readers with their losses, and what each has to read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from controller.engine_status import shallow_part
from pruners.reading.reader import PromptReader
from pruners.variant import VariantSpec


@dataclass(frozen=True, slots=True)
class ServedReader:
    """A reader and its measured loss, in nats per token of answers that the base writes.

    `loss` is the mean over prompts of all lengths, None if it was never measured. `by_length` are
    the means over prompts of up to so many tokens, the shortest first, where these were measured.
    """

    reader: PromptReader
    loss: float | None = None
    by_length: tuple[tuple[int, float], ...] = ()

    def expected_loss(self, prompt_tokens: int) -> float | None:
        """Return the mean loss on prompts of about this length, in nats per token."""
        for most, loss in self.by_length:
            if prompt_tokens <= most:
                return loss
        return self.by_length[-1][1] if self.by_length else self.loss


class ServedChoice(NamedTuple):
    """A variant that writes and a reader, None for reading in full.

    `shallow` is what a shallow token of the prompt runs through, None without a reader.
    """

    variant: VariantSpec
    reader: str | None = None
    shallow: VariantSpec | None = None

    @property
    def label(self) -> str:
        """The choice as text, as `Action.choice` has it."""
        return self.variant.name if self.reader is None else f"{self.variant.name}+{self.reader}"


def make_choice(variant: VariantSpec, reader: PromptReader | None) -> ServedChoice:
    """Return the choice of a variant and a reader, None for reading in full."""
    if reader is None:
        return ServedChoice(variant)
    return ServedChoice(variant, reader.name, shallow_part(variant, reader.depth))


class PromptTokens(NamedTuple):
    """Tokens of a prompt that are still to be read: in full, and by the lower layers only."""

    full: int
    shallow: int = 0


@dataclass(frozen=True, slots=True)
class IncomingPrompt:
    """The tokens of a prompt, and which of them have to be read how.

    `reusable` are the tokens that the prefix cache holds, by the names of the variant and of the
    reader (None: in full); what is left out has none. `full_from` holds for each reader by name how
    many tokens from each position on it reads in full, `[tokens + 1]`.
    """

    tokens: int
    reusable: Mapping[tuple[str, str | None], int] = field(default_factory=dict)
    full_from: Mapping[str, np.ndarray] = field(default_factory=dict)

    def cached(self, choice: ServedChoice) -> int:
        """Return how many tokens of the prompt the prefix cache holds for a choice."""
        return self.reusable.get((choice.variant.name, choice.reader), 0) if self.reusable else 0

    def left(self, choice: ServedChoice, cached: int) -> PromptTokens:
        """Return what a choice has to read if the first `cached` tokens are in the cache."""
        left = self.tokens - cached
        if choice.reader is None:
            return PromptTokens(left)
        full = int(self.full_from[choice.reader][cached])
        return PromptTokens(full, left - full)

    def newly_shallow(self, choice: ServedChoice) -> float:
        """Return the share (0..1) of a reader's shallow tokens that are not in the cache in full.

        A prefix that the cache holds in full loses nothing. It is used where the cache has no
        longer one for the reader, whose shallow tokens would have been read as they are now.
        """
        cached = self.cached(choice)
        if not cached or self.reusable.get((choice.variant.name, None), 0) < cached:
            return 1.0
        shallow = self.left(choice, 0).shallow
        return self.left(choice, cached).shallow / shallow if shallow else 0.0
