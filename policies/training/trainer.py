"""What learns, in rounds that are seeded anew, so that a killed training goes on exactly."""

from typing import Protocol

import numpy as np

from policies.learned import NetworkLayers

Tensors = dict[str, np.ndarray]


class Trainer(Protocol):
    """Holds everything between rounds in `state`. A round is some episodes of the environment."""

    def round(self, seed: int, progress: float) -> list[float]:
        """Learns for a round, at `progress` (0..1); returns each episode's reward."""
        ...

    def state(self) -> Tensors:
        """All that the next round depends on."""
        ...

    def restore(self, state: Tensors) -> None:
        """Takes up a state. `KeyError`, `ValueError` or `RuntimeError` if it does not fit."""
        ...

    def layers(self) -> NetworkLayers:
        """The policy as it is now."""
        ...
