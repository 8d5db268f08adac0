"""What one answer is worth to a policy that learns."""

import math
from dataclasses import dataclass
from typing import Literal

from policies.simulation.outcome import Outcome

RewardName = Literal["constraint", "thesis"]


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of a request. `lost` is the reward of one that missed its objectives.

    `constraint`: exp(-loss), the quality kept, if all objectives were met; else `lost`, also for a
    refused request. `thesis`: 0.6 * tokens/s - 0.4 * perplexity / 10, with the variant's perplexity
    on the base's answer; it knows no objectives, and a refused request is worth 0.
    """

    name: RewardName = "constraint"
    lost: float = -0.5

    def of(self, outcome: Outcome) -> float:
        """Return the reward of a request that has ended."""
        if self.name == "constraint":
            return outcome.quality if outcome.met else self.lost
        if outcome.action is None:
            return 0.0
        speed = outcome.output / max(outcome.seconds, 1e-6)
        return 0.6 * speed - 0.4 * math.exp(min(outcome.surprise, 50.0)) / 10
