"""What a simulated server chooses from: variants and readers, as the server's catalogue has it."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from policies.observation import Action
from policies.simulation.profile import Profile
from policies.simulation.rates import Rates
from policies.simulation.reader_profile import IN_FULL, ReaderProfile, ReadingTime


class SimulatedChoice(NamedTuple):
    """A variant by its number, and a reader with its time; None reads in full."""

    action: Action
    variant: int
    reader: ReaderProfile | None = None
    time: ReadingTime = IN_FULL

    def work(self, rates: Rates, prompt: int, output: int, rows: int) -> float:
        """Return the seconds that a request takes of a machine with full batches of `rows`.

        `prompt` and `output` are in tokens.
        """
        return rates.work(self.variant, prompt, output, rows, self.time.share(prompt))


def profile_choices(profile: Profile) -> tuple[SimulatedChoice, ...]:
    """Return what there is to choose from, without KV budgets. The base in full is the first.

    Then come the base with each reader, the variants, and the profile's pairs.
    """
    base, *variants = profile.variants
    readers = {reader.name: reader for reader in profile.readers}
    chosen: list[tuple[str, str | None]] = [(base, None), *((base, name) for name in readers)]
    chosen += [(name, None) for name in variants]
    chosen += profile.pairs
    found = []
    for name, reader in chosen:
        action, number = Action(name, None, reader), profile.variants.index(name)
        one = None if reader is None else readers[reader]
        found.append(SimulatedChoice(action, number, one, IN_FULL if one is None else one.time()))
    return tuple(found)


def profile_actions(profile: Profile, choices: Sequence[SimulatedChoice]) -> list[Action]:
    """Return all actions. Each of the choices goes with every KV budget, except for the pairs."""
    budgets = (None, *sorted(profile.kv_loss, reverse=True))
    alone = len(choices) - len(profile.pairs)
    actions = [
        Action(one.action.variant, budget, one.action.reader)
        for one in choices[:alone]
        for budget in budgets
    ]
    return actions + [one.action for one in choices[alone:]]


def choice_labels(choices: Iterable[SimulatedChoice]) -> tuple[str, ...]:
    """Return the names of choices, as `Action.choice` has them."""
    return tuple(one.action.choice for one in choices)


def losses_by_choice(
    choices: Sequence[SimulatedChoice], losses: np.ndarray, tokens: Sequence[int]
) -> np.ndarray:
    """Return the loss of each choice on some requests, `[requests, choices]`.

    `losses` `[requests, variants]` are those of the variants on their prompts, and `tokens` the
    lengths of what readers have to read. Losses of writing and reading are taken to add up.
    """
    found: np.ndarray = losses[:, [one.variant for one in choices]].astype(float)
    for number, one in enumerate(choices):
        if one.reader is not None:
            found[:, number] += one.reader.losses(tokens)
    return found
