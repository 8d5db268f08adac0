"""All actions of a server, and their measured losses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from controller.reading import ServedChoice, ServedReader, make_choice
from policies import Action
from policies.candidates import add_reader_loss
from pruners.variant import BASE, VariantSpec


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The variants (base first), the readers, the KV budgets in tokens, and their measured losses.

    Losses are in nats per token against the base, on held-out text. Those of variant, reader and
    budget are taken to add up. What was never measured is absent.

    The base goes with every reader and every budget, and each variant with every budget. `pairs`
    are the other variants that go with a reader, without a budget. `keep_tasks` are the choices
    (`Action.choice`) that were measured to find what stands in the prompt, the base among them.
    `token_kinds` int8 `[vocab]` are those of tokens. Without `budgets_free_memory` a
    budget only limits to how many cached tokens each token attends.
    """

    variants: dict[str, VariantSpec]
    kv_budgets: tuple[int, ...]
    variant_loss: dict[str, float]
    kv_loss: dict[int, float]
    readers: dict[str, ServedReader] = field(default_factory=dict)
    pairs: tuple[tuple[str, str], ...] = ()
    keep_tasks: frozenset[str] = frozenset([BASE])
    token_kinds: Tensor | None = None
    budgets_free_memory: bool = True

    def actions(self) -> list[Action]:
        """Return all actions. The base, in full and without a budget, is the first."""
        budgets = (None, *sorted(self.kv_budgets, reverse=True))
        chosen = [(BASE, None), *((BASE, reader) for reader in self.readers)]
        chosen += [(name, None) for name in self.variants if name != BASE]
        actions = [Action(name, budget, reader) for name, reader in chosen for budget in budgets]
        return actions + [Action(name, None, reader) for name, reader in self.pairs]

    def choice(self, variant: str, reader: str | None) -> ServedChoice:
        """Return a variant with a reader (None: in full), both by name."""
        return make_choice(
            self.variants[variant], None if reader is None else self.readers[reader].reader
        )

    def expected_losses(self) -> dict[str, float]:
        """Return the mean loss of each choice that was measured, in nats per token."""
        losses = {}
        for action in self.actions():
            loss = self._variant_loss(action.variant)
            if action.reader is not None:
                loss = add_reader_loss(loss, self.readers[action.reader].loss)
            if loss is not None:
                losses[action.choice] = loss
        return losses

    def variant_losses(self, relative: Mapping[str, float]) -> dict[str, float | None]:
        """Return each variant's predicted loss in nats per token; None if it was never measured.

        `relative` holds a variant's expected loss on this prompt over its mean loss, where that is
        not 1.
        """
        losses = {name: self._variant_loss(name) for name in self.variants}
        return {
            name: None if loss is None else relative.get(name, 1.0) * loss
            for name, loss in losses.items()
        }

    def reader_losses(
        self, prompt_tokens: int, relative: Mapping[str, float]
    ) -> dict[str, float | None]:
        """Return each reader's predicted loss on a prompt of this length, in nats per token.

        `relative` holds a reader's expected loss on this prompt over that of its length, where that
        is not 1. None if it was never measured.
        """
        losses: dict[str, float | None] = {}
        for name, served in self.readers.items():
            loss = served.expected_loss(prompt_tokens)
            losses[name] = None if loss is None else relative.get(name, 1.0) * loss
        return losses

    def full_from(self, prompt: Sequence[int]) -> dict[str, np.ndarray]:
        """Return for each reader how many tokens from each position on it reads in full.

        `[tokens + 1]`, the last is 0. See `IncomingPrompt`.
        """
        if not self.readers:
            return {}
        tokens = torch.from_numpy(np.array(prompt))
        counted: dict[tuple[int, int, bool], np.ndarray] = {}
        found = {}
        for name, served in self.readers.items():
            reader = served.reader
            kind = reader.last, reader.turn, reader.numbers  # whatever the depth
            if kind not in counted:
                shallow = reader.shallow(tokens, self.token_kinds)
                counted[kind] = _sums_to_the_end(~shallow.numpy())
            found[name] = counted[kind]
        return found

    def _variant_loss(self, name: str) -> float | None:
        return 0.0 if name == BASE else self.variant_loss.get(name)


def _sums_to_the_end(full: np.ndarray) -> np.ndarray:
    return np.append(full[::-1].cumsum()[::-1], 0)
