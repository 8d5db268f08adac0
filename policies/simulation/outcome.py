"""How one simulated request went."""

import math
from typing import NamedTuple

from policies.observation import Objectives


class Outcome(NamedTuple):
    """How one request went. Times in seconds, losses in nats per token.

    `action` is the number of its choice; None if it was refused or lost with an empty battery.
    `met` says whether all objectives were kept. `loss` is what the profile measured of its variant
    on its prompt (KL to the base) and of its reader, `surprise` the own loss on the base's answer.
    """

    action: int | None
    met: bool
    loss: float = 0.0
    surprise: float = 0.0
    ttft: float = math.inf
    tpot: float = math.inf
    seconds: float = math.inf
    output: int = 0

    @property
    def quality(self) -> float:
        """The share of the base's quality that is kept, exp(-loss); 0 if an objective was not."""
        return math.exp(-self.loss) if self.met else 0.0


def are_met(wanted: Objectives, ttft: float, tpot: float, seconds: float) -> bool:
    """Return whether an answer with these times, in seconds, kept all objectives."""
    pairs = ((ttft, wanted.ttft), (tpot, wanted.tpot), (seconds, wanted.deadline))
    return all(bound is None or value <= bound for value, bound in pairs)
