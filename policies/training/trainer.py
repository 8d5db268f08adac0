"""The protocol of trainers, which learn in rounds so that an interrupted training can resume."""

from typing import Protocol

import numpy as np

from policies.learned import NetworkLayers

TrainerState = dict[str, np.ndarray]
"""Arrays by name, of any shape."""


class PolicyTrainer(Protocol):
    """Learns in rounds of some episodes. Between rounds, `state` holds all of it."""

    def run_round(self, seed: int, progress: float) -> list[float]:
        """Learn for a round at `progress` (0..1); return each episode's reward."""
        ...

    def state(self) -> TrainerState:
        """Return a copy of all that the next round depends on."""
        ...

    def restore(self, state: TrainerState) -> None:
        """Continue from a state.

        Raises `KeyError`, `ValueError`, `TypeError` or `RuntimeError` if it does not fit.
        """
        ...

    def layers(self) -> NetworkLayers:
        """Return the policy's network as it is now."""
        ...
