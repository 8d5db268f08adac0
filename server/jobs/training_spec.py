"""What a policy is trained with: as the options of `train-policy` and as its bundle say it."""

from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from policies import Objectives
from policies.bundle import PolicyBundle, PolicyError, PolicyKind
from policies.simulation.engine import EngineLimits
from policies.simulation.environment import EpisodeSettings
from policies.simulation.host import BATTERY, HOT, MAINS
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward, RewardName
from policies.simulation.traffic import Arrival, Lengths, read_trace, scaled, synthetic
from policies.training.train import ROUND, TrainingPlan, split_prompts
from pruners.support.errors import UserError
from pruners.support.files import file_hash

MIN_PROMPTS = 5
"""Fewest prompts to learn from, and fewest to test with."""


class TrainingSpecError(UserError):
    """A policy cannot be trained so, or was trained with something else. One line."""


class Trace(BaseModel):
    """A file of request arrivals, and its SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Describe a file. Raises `TrainingSpecError` if it cannot be read."""
        try:
            return cls(path=str(path), name=path.name, sha256=file_hash(path))
        except OSError as error:
            raise TrainingSpecError(f"cannot read the trace {path}: {error.strerror}") from error


class TrainingSpec(BaseModel):
    """How a policy is trained. Fields have the names of the options of `train-policy`.

    At most `train_samples` prompts of the profile are used, and answers have at most
    `max_new_tokens` tokens. Without a `trace`, arrivals are drawn at random; the `lengths` of a
    trace are scaled. `seeds` trainings are compared, and the policy of the first is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: PolicyKind = "dqn"
    episodes: int = Field(default=500, ge=ROUND, multiple_of=ROUND)
    train_samples: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=400, ge=1)
    trace: Trace | None = None
    lengths: Lengths = "prompts"
    requests: int = Field(default=6000, ge=24)
    reward: RewardName = "constraint"
    lost: float = -0.5
    ttft_ms: float = Field(default=2000.0, gt=0)
    ablations: bool = True
    seeds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)
    max_running: int = Field(default=16, ge=1, le=256)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the specification that a command's options give.

        Raises `TrainingSpecError`, which names the option that is wrong.
        """
        trace = options["trace"]
        given = {name: options[name] for name in cls.model_fields}
        try:
            return cls(**{**given, "trace": None if trace is None else Trace.of(trace)})
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]).replace("_", "-")
            raise TrainingSpecError(
                f"--{option}: {first['msg'][0].lower()}{first['msg'][1:]}"
            ) from error

    def plan(self) -> TrainingPlan:
        """Return the plan of the first training, on every kind of host that a server may meet."""
        # The policy then sees no reading that it has not learned from.
        hosts = (MAINS, BATTERY, HOT)
        objectives = (Objectives(ttft=self.ttft_ms / 1e3, firm=True),)
        limits = EngineLimits(self.max_running)
        drawn = EpisodeSettings(objectives=objectives, hosts=hosts, limits=limits)
        return TrainingPlan(
            self.kind, self.episodes, Reward(self.reward, self.lost), drawn, seed=self.seed
        )

    def traffic(self) -> tuple[Sequence[Arrival], Sequence[Arrival]]:
        """Return the arrivals to learn from, the first two thirds, and those to test with.

        Raises `TrafficError`, or `TrainingSpecError` if the trace has changed since.
        """
        if self.trace is None:
            arrivals = synthetic(self.requests, self.seed)
        else:
            if Trace.of(Path(self.trace.path)).sha256 != self.trace.sha256:
                raise TrainingSpecError(
                    f"the trace {self.trace.path} has changed; training used another"
                )
            trace = read_trace(Path(self.trace.path), self.requests)
            arrivals = scaled(trace, self.lengths)
        longest = self.max_new_tokens
        arrivals = [a._replace(output=min(a.output, longest)) for a in arrivals]
        cut = len(arrivals) * 2 // 3
        return arrivals[:cut], arrivals[cut:]

    def prompts(self, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
        """Return the profile's rows to learn from and those to test with, `[prompts]` each.

        Raises `TrainingSpecError` if there are too few.
        """
        training, held_out = split_prompts(profile.prompts.names[: self.train_samples])
        if min(len(training), len(held_out)) < MIN_PROMPTS:
            raise TrainingSpecError(
                f"{len(training)} prompts to learn from and {len(held_out)} to test with; "
                f"{MIN_PROMPTS} of each are needed"
            )
        return training, held_out

    def confirmed_by(self, options: Mapping[str, Any], given: Set[str]) -> Self:
        """Return this specification if the `given` ones of a command's options agree with it.

        A trace may have moved; the result names its new path. Raises `TrainingSpecError` for an
        option that differs.
        """
        confirmed = self
        for name in sorted(given & self.__class__.model_fields.keys()):
            value, trained_with = options[name], getattr(self, name)
            if name == "trace":
                moved = Trace.of(value)
                if trained_with is not None and trained_with.sha256 == moved.sha256:
                    confirmed = self.model_copy(update={"trace": moved})
                    continue
                trained_with = _describe(trained_with)
            if value != trained_with:
                option = f"--{name.replace('_', '-')}"
                raise TrainingSpecError(
                    f"{option} {value}: the policy was trained with {trained_with}; "
                    f"leave {option} out"
                )
        return confirmed


class ProfileReference(BaseModel):
    """Which profile a policy was trained on: its identity, and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    model: str
    artefact: str
    prompts: str
    prompts_sha256: str


class TrainingRecord(BaseModel):
    """What a bundle says of its training.

    `learned` and `held_out` are the names of the prompts to learn from and to test with. The
    aliases are the keys in `policy.json`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spec: TrainingSpec = Field(alias="lesson")
    profile: ProfileReference
    learned: tuple[str, ...]
    held_out: tuple[str, ...] = Field(alias="held")

    @classmethod
    def of(cls, spec: TrainingSpec, profile: Profile) -> Self:
        """Return the record of a training on `profile`. Raises `TrainingSpecError`."""
        names, (training, held_out) = profile.prompts.names, spec.prompts(profile)
        return cls(
            lesson=spec,
            profile=ProfileReference(
                identity=profile.identity,
                model=profile.model,
                artefact=profile.artefact,
                prompts=profile.origin.name,
                prompts_sha256=profile.origin.sha256,
            ),
            learned=tuple(names[row] for row in training),
            held=tuple(names[row] for row in held_out),
        )

    @classmethod
    def read(cls, bundle: PolicyBundle, folder: Path) -> Self:
        """Return the record in the bundle of `folder`. Raises `PolicyError` if it is damaged."""
        try:
            return cls.model_validate(bundle.training)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise PolicyError(
                f"{folder} is damaged: what it was trained with is not whole ({place}); train it "
                "again"
            ) from error


def _describe(trace: Trace | None) -> str:
    return "drawn arrivals" if trace is None else f"{trace.name} (SHA-256 {trace.sha256[:12]})"
