"""What a policy is shown and what it answers: plain data, from which decisions can be replayed."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

HOT_CELSIUS = 92.0
"""Degrees Celsius. Processors slow down a few degrees above."""


class Reason(StrEnum):
    """Why an action was chosen."""

    PINNED = "pinned"  # the request named it
    BASE_FITS = "base_fits"  # the base meets every objective
    QUEUE = "queue"  # others are waiting
    TTFT = "ttft"  # the base would answer its first token too late
    TPOT = "tpot"  # the base would write too slowly
    DEADLINE = "deadline"  # the base would end its answer too late
    BATTERY = "battery"  # on battery and low
    THERMAL = "thermal"  # the host is too hot, or slows down because of heat
    ENERGY = "energy"  # the server is set to save energy
    MEMORY = "memory"  # not enough memory for a full cache
    LEAST_BAD = "least_bad"  # nothing meets the objectives
    FIXED = "fixed"  # a static policy
    DWELL = "dwell"  # the last change is too recent for another one
    FLOOR = "floor"  # refused: too late with the variants that the quality floor allows
    LATE = "late"  # refused: too late for its objective, or so large that many others would be
    LEARNED = "learned"  # a trained policy chose it
    EXPLORED = "explored"  # a random choice, so that the log says more


REFUSED = (Reason.LATE, Reason.FLOOR)
"""Reasons for turning a request away. The action only says what it would have got."""


class Constraint(StrEnum):
    """Why the shield blocks an action."""

    QUALITY_FLOOR = "quality_floor"  # the predicted loss is above what the request allows
    KV_MEMORY = "kv_memory"  # the cache would not fit beside those promised already
    HOST_MEMORY = "host_memory"  # the host is short of memory


@dataclass(frozen=True, slots=True)
class Action:
    """A variant that writes, a reader of the prompt, and a KV budget.

    `kv_budget` is the most tokens that the answer's cache may hold; None: no limit. `reader` is the
    name of a reader; None: the prompt is read in full.
    """

    variant: str
    kv_budget: int | None = None
    reader: str | None = None

    @property
    def choice(self) -> str:
        """Variant and reader as text, whatever the KV budget: `base`, `base+read-70`."""
        return self.variant if self.reader is None else f"{self.variant}+{self.reader}"

    @property
    def label(self) -> str:
        """The action as text, for example `base`, `base+read-70` or `mix-80+read-70+kv-512`."""
        return self.choice if self.kv_budget is None else f"{self.choice}+kv-{self.kv_budget}"


@dataclass(frozen=True, slots=True)
class Objectives:
    """Bounds that an answer should keep; None is no bound.

    `ttft` (time to the first token), `tpot` (time per further token) and `deadline` (for the whole
    answer, at its expected length) are in seconds, `max_loss` in nats per token. With `firm` a
    request that cannot have its first token in time is refused at once, not served late.
    """

    ttft: float | None = None
    tpot: float | None = None
    max_loss: float | None = None
    deadline: float | None = None
    firm: bool = False

    def filled_from(self, defaults: "Objectives") -> "Objectives":
        """Return a request's objectives, with those of `defaults` where it names none."""
        return Objectives(
            ttft=defaults.ttft if self.ttft is None else self.ttft,
            tpot=defaults.tpot if self.tpot is None else self.tpot,
            max_loss=defaults.max_loss if self.max_loss is None else self.max_loss,
            deadline=defaults.deadline if self.deadline is None else self.deadline,
            firm=defaults.firm,
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """An action and what is predicted of it.

    `loss` is in nats per token against the base, None if it was never measured. `cost` is the time
    that the request takes of a machine with full batches, over that by the base. `ttft`, `tpot` and
    `total` (to the end of the answer) are in seconds. `blocked` is the shield's constraint, None if
    the action is allowed. `keeps_tasks` says that what stands in the prompt is found as by the base
    (reading tasks, such as looking up a passkey), by measurement.
    """

    action: Action
    loss: float | None
    cost: float
    ttft: float
    tpot: float
    blocked: Constraint | None = None
    total: float = 0.0
    keeps_tasks: bool = True

    def keeps(self, objectives: Objectives) -> bool:
        """Return whether all objectives for times are predicted to be kept."""
        pairs = (
            (self.ttft, objectives.ttft),
            (self.tpot, objectives.tpot),
            (self.total, objectives.deadline),
        )
        return all(bound is None or value <= bound for value, bound in pairs)


def loss_or_infinity(candidate: Candidate) -> float:
    """Return the predicted loss, for sorting: an unmeasured one is infinite."""
    return float("inf") if candidate.loss is None else candidate.loss


@dataclass(frozen=True, slots=True)
class Observation:
    """Everything that a decision depends on.

    The first candidate is the base without a budget, in full unless the request names a reader.
    `wait` is the predicted time in the queue in seconds. Readings of the host are None where
    missing; `hot` says that the host is too hot, or slows down because of heat. `pinned` is the
    action that the request names. `held` is the variant that similar requests get at present,
    `held_seconds` the time since it was changed to. `demand` is the estimated load: arriving work
    over what full batches of the base get done. `rank` is the share (0..1) of recent work that was
    in smaller requests than this one. `draw` is a random number in [0, 1), for policies that
    explore. `queued` are the seconds in the queue that the candidates' `ttft` and `total` count,
    None for `wait`: they are others for a request that was accepted before and starts now.
    `waiting` are the other requests in the queue. `work` is what the request takes of a machine
    with full batches of the base, in seconds. Field names are keys of the audit log.
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
    queued: float | None = None
    waiting: int = 0
    work: float = 0.0

    @property
    def accepted(self) -> bool:
        """Whether the request was accepted before and starts now, so that it is not refused."""
        return self.queued is not None


def read_observation(value: Mapping[str, Any]) -> Observation:
    """Return the observation that `dataclasses.asdict` made `value` of.

    Logs from before there were readers lack some keys, which then have their defaults.
    Raises `KeyError`, `TypeError` or `ValueError` if it is something else.
    """

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
    """A rule that chooses one of the candidates. `name` is shown to users and written to logs."""

    name: str

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """Return an action and the reason for it. A pure function of the observation."""
        ...
