"""A request as the controller sees it, and what it asks for."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from controller.analyzer import PromptFeatures
from controller.engine_status import NO_CLIENT
from policies import Action, Objectives
from pruners.reading.reader import FULL
from pruners.variant import BASE


@dataclass(frozen=True, slots=True)
class RequestPreferences:
    """What a request asks of the controller: objectives, and an action or parts of it by name.

    A named `variant` or `kv_budget` (tokens) is a pin: it wins over the policy, and the prompt is
    read in full unless a `reader` is named as well. A `reader` alone, a reader's name or `full`,
    leaves the rest to the policy.
    """

    objectives: Objectives = field(default_factory=Objectives)
    variant: str | None = None
    kv_budget: int | None = None
    reader: str | None = None

    @property
    def pinned(self) -> Action | None:
        """The action that the request names; None if it names none. The default is the base."""
        if self.variant is None and self.kv_budget is None:
            return None
        variant = BASE if self.variant is None else self.variant
        return Action(variant, self.kv_budget, None if self.reader == FULL else self.reader)


@dataclass(frozen=True, slots=True)
class IncomingRequest:
    """A request as the controller sees it.

    `reusable` and `full_from` are as `IncomingPrompt` has them; `client` is whose it is. Readers
    that are missing in `full_from` are not used, so that a request without it is read in full.
    """

    features: PromptFeatures
    prompt_tokens: int
    max_tokens: int
    preferences: RequestPreferences = field(default_factory=RequestPreferences)
    reusable: Mapping[tuple[str, str | None], int] = field(default_factory=dict)
    full_from: Mapping[str, np.ndarray] = field(default_factory=dict)
    client: str = NO_CLIENT

    def allows(self, action: Action) -> bool:
        """Return whether an action's reader is known for the prompt, and the one that is named."""
        reader, named = action.reader, self.preferences.reader
        if named is not None and reader != (None if named == FULL else named):
            return False
        return reader is None or reader in self.full_from
