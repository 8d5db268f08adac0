"""What a policy sees and what it answers. Plain data: a decision can be replayed from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

HOT_CELSIUS = 92.0
"""Processors slow down a few degrees above."""


class Reason(StrEnum):
    """Why an action was chosen."""

    PINNED = "pinned"  # the request named it
    BASE_FITS = "base_fits"  # the base meets every objective
    QUEUE = "queue"  # others are waiting
    TTFT = "ttft"  # the base would answer its first token too late
    TPOT = "tpot"  # the base would write too slowly
    DEADLINE = "deadline"  # the base would end its answer too late
    BATTERY = "battery"  # on battery and low
    THERMAL = "thermal"  # too hot, or slowed down for being so
    ENERGY = "energy"  # the server was told to save it
    MEMORY = "memory"  # not enough memory for a full cache
    LEAST_BAD = "least_bad"  # nothing meets the objectives
    FIXED = "fixed"  # a static policy
    DWELL = "dwell"  # the last change is too recent for another one
    FLOOR = "floor"  # too late for the objectives with what the quality floor leaves: refused
    LATE = "late"  # too late for its objective whatever it gets: refused
    LEARNED = "learned"  # a trained policy chose it
    EXPLORED = "explored"  # drawn by chance, to learn what it does


REFUSED = (Reason.LATE, Reason.FLOOR)
"""The request is turned away; its action only says what it would have got."""


class Constraint(StrEnum):
    """Why the shield forbids an action."""

    QUALITY_FLOOR = "quality_floor"  # it would lose more than the request allows
    KV_MEMORY = "kv_memory"  # its cache would not fit beside those promised already
    HOST_MEMORY = "host_memory"  # the host is short of memory


@dataclass(frozen=True, slots=True)
class Action:
    """What the engine is told: a variant and, unless None, at most so many cached tokens."""

    variant: str
    kv_budget: int | None = None

    @property
    def label(self) -> str:
        """Such as `mix-80` or `mix-80+kv-512`."""
        return self.variant if self.kv_budget is None else f"{self.variant}+kv-{self.kv_budget}"


@dataclass(frozen=True, slots=True)
class Objectives:
    """What the answer should keep. Seconds, and nats per token for `max_loss`; None is no bound.

    `deadline` is for the whole answer, at the length that is expected of it. `firm`: who cannot
    have the first token in time is refused at once, not served late.
    """

    ttft: float | None = None
    tpot: float | None = None
    max_loss: float | None = None
    deadline: float | None = None
    firm: bool = False


@dataclass(frozen=True, slots=True)
class Candidate:
    """An action with what is predicted of it.

    `loss` in nats per token to the base (None: never measured), `cost` the time that the request
    takes of full batches over what it takes of the base's, `ttft`, `tpot` and `total` (to the end
    of the answer) in seconds.
    `blocked` names the shield's constraint.
    """

    action: Action
    loss: float | None
    cost: float
    ttft: float
    tpot: float
    blocked: Constraint | None = None
    total: float = 0.0

    def keeps(self, wanted: Objectives) -> bool:
        """Whether it is predicted to be in time."""
        pairs = ((self.ttft, wanted.ttft), (self.tpot, wanted.tpot), (self.total, wanted.deadline))
        return all(bound is None or value <= bound for value, bound in pairs)


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything a decision depends on. The base without a budget is the first candidate.

    `wait` is the predicted time in the queue, in seconds; readings are None where missing. `hot`
    says that the host is, or is slowed down for it. `pinned` is what the request asks for by name.
    `held` is the variant that requests with these objectives get at present, `held_seconds` for how
    long. `demand` is the recent rate of work over what a full batch of the base gets done; `rank`
    is the share of recent requests' work, 0..1, that smaller ones than this one were. `draw` is a
    random number in [0, 1) for policies that leave something to chance.
    """

    candidates: tuple[Candidate, ...]
    objectives: Objectives
    wait: float
    complexity: float
    on_battery: bool | None = None
    battery_charge: float | None = None
    hot: bool | None = None
    save_energy: bool = False
    pinned: Action | None = None
    held: str | None = None
    held_seconds: float = 0.0
    demand: float = 0.0
    rank: float = 1.0
    draw: float = 0.0


def read_observation(value: Mapping[str, Any]) -> Observation:
    """From `dataclasses.asdict` of one. Raises `KeyError`, `TypeError` or `ValueError`."""

    def candidate(given: Mapping[str, Any]) -> Candidate:
        blocked = given["blocked"]
        return Candidate(
            **{
                **given,
                "action": Action(**given["action"]),
                "blocked": None if blocked is None else Constraint(blocked),
            }
        )

    pinned = value["pinned"]
    return Observation(
        **{
            **value,
            "candidates": tuple(map(candidate, value["candidates"])),
            "objectives": Objectives(**value["objectives"]),
            "pinned": None if pinned is None else Action(**pinned),
        }
    )


class Policy(Protocol):
    """Chooses one of the candidates."""

    name: str

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """The action and why; a pure function of the observation."""
        ...
