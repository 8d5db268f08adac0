"""What one answer is worth to a policy that learns."""

import math
from dataclasses import dataclass
from typing import Literal

from policies.simulation.server import Outcome

RewardName = Literal["constraint", "thesis"]


@dataclass(frozen=True, slots=True)
class Reward:
    """`constraint`: the quality kept, exp(-loss), if the objectives were met, else `lost`, which a
    refused request is worth too. `thesis`: 0.6 tokens/s - 0.4 perplexity / 10, the perplexity being
    the variant's on the base's answer; it knows no objectives, and a refusal is worth nothing.
    """

    name: RewardName = "constraint"
    lost: float = -0.5

    def of(self, outcome: Outcome) -> float:
        """Of one request that ended."""
        if self.name == "constraint":
            return outcome.quality if outcome.met else self.lost
        if outcome.action is None:
            return 0.0
        speed = outcome.output / max(outcome.seconds, 1e-6)
        return 0.6 * speed - 0.4 * math.exp(min(outcome.surprise, 50.0)) / 10
