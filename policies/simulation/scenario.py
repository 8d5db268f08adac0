"""What a simulated server works under, and what it knows of the request that it decides on."""

from dataclasses import dataclass, field

from policies.observation import Objectives
from policies.simulation.engine import EngineLimits
from policies.simulation.host import MAINS, HostScenario
from policies.simulation.simulated_request import SimulatedRequest
from policies.simulation.traffic import Arrival


@dataclass(frozen=True, slots=True)
class Scenario:
    """What a simulated server works under. `seed` is for the policy's random draws."""

    objectives: Objectives = field(default_factory=Objectives)
    limits: EngineLimits = field(default_factory=EngineLimits)
    host: HostScenario = MAINS
    seed: int = 0


@dataclass(slots=True)
class CurrentRequest:
    """The request that waits for a decision: because it arrives, or because it is `starting`."""

    arrival: Arrival
    index: int
    starting: SimulatedRequest | None = None
    expected_output: float = 0.0
    work: float = 0.0  # seconds of full batches of the base
    wait: float = 0.0  # predicted seconds in the queue for one that arrives now
    queued: float = 0.0  # seconds in the queue that its own times count
