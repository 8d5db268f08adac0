"""What a policy is trained with: as `train-policy` is told, and as its bundle notes it."""

from collections.abc import Mapping, Sequence
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
from policies.simulation.traffic import Arrival, read_trace, shortened, synthetic
from policies.training.train import ROUND, TrainingPlan, split
from pruners.support.errors import UserError
from pruners.support.files import file_hash

_PROMPT, _OUTPUT = 80, 60  # medians that a trace's lengths are scaled to
LEAST = 5
"""Prompts to learn from, and to test with."""
"""Prompts to learn from, and to test with."""


class LessonError(UserError):
    """Something that cannot be learned from, or not what was trained with. One clear line."""


class Trace(BaseModel):
    """A file of arrivals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    name: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """Raises `LessonError` if there is no such file."""
        try:
            return cls(path=str(path), name=path.name, sha256=file_hash(path))
        except OSError as error:
            raise LessonError(f"cannot read the trace {path}: {error.strerror}") from error


class Lesson(BaseModel):
    """Fields are called like the options of `train-policy`; see there.

    `train_samples` prompts of the profile at most; answers of at most `max_new_tokens`; without a
    `trace` arrivals are drawn. What comes of `seeds` trainings is compared; the first one's policy
    is kept.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: PolicyKind = "dqn"
    episodes: int = Field(default=500, ge=ROUND, multiple_of=ROUND)
    train_samples: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=400, ge=1)
    trace: Trace | None = None
    requests: int = Field(default=6000, ge=24)
    reward: RewardName = "constraint"
    lost: float = -0.5
    ttft_ms: float = Field(default=2000.0, gt=0)
    ablations: bool = True
    seeds: int = Field(default=3, ge=1)
    seed: int = Field(default=0, ge=0)
    max_running: int = Field(default=16, ge=1, le=256)

    @classmethod
    def told(cls, options: Mapping[str, Any]) -> Self:
        """By a command's options. Raises `LessonError`, which names the one that is wrong."""
        trace = options["trace"]
        given = {name: options[name] for name in cls.model_fields}
        try:
            return cls(**{**given, "trace": None if trace is None else Trace.of(trace)})
        except ValidationError as error:
            first = error.errors()[0]
            option = str(first["loc"][0]).replace("_", "-")
            raise LessonError(f"--{option}: {first['msg'][0].lower()}{first['msg'][1:]}") from error

    def plan(self) -> TrainingPlan:
        """Of the first training, on every host that a server may meet."""
        # So that no reading is new to the policy then.
        hosts = (MAINS, BATTERY, HOT)
        wanted = (Objectives(ttft=self.ttft_ms / 1e3, firm=True),)
        limits = EngineLimits(self.max_running)
        drawn = EpisodeSettings(objectives=wanted, hosts=hosts, limits=limits)
        return TrainingPlan(
            self.kind, self.episodes, Reward(self.reward, self.lost), drawn, seed=self.seed
        )

    def traffic(self) -> tuple[Sequence[Arrival], Sequence[Arrival]]:
        """The first two thirds to learn from, the rest to test with.

        Raises `TrafficError`, or `LessonError` if the trace is not the one that was noted.
        """
        if self.trace is None:
            arrivals = synthetic(self.requests, self.seed)
        else:
            if Trace.of(Path(self.trace.path)).sha256 != self.trace.sha256:
                raise LessonError(f"the trace {self.trace.path} has changed; training used another")
            arrivals = shortened(read_trace(Path(self.trace.path), self.requests), _PROMPT, _OUTPUT)
        longest = self.max_new_tokens
        arrivals = [a._replace(output=min(a.output, longest)) for a in arrivals]
        cut = len(arrivals) * 2 // 3
        return arrivals[:cut], arrivals[cut:]

    def prompts(self, profile: Profile) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the profile to learn from and to test with. Raises `LessonError`."""
        learned, held = split(profile.prompts.names[: self.train_samples])
        if min(len(learned), len(held)) < LEAST:
            raise LessonError(
                f"{len(learned)} prompts to learn from and {len(held)} to test with; "
                f"{LEAST} of each are needed"
            )
        return learned, held

    def contradicted(self, options: Mapping[str, Any], given: set[str]) -> Self:
        """This lesson, if the `given` of a command's options say the same. Raises `LessonError`.

        A trace may lie elsewhere by now.
        """
        found = self
        for name in sorted(given & self.__class__.model_fields.keys()):
            value, own = options[name], getattr(self, name)
            if name == "trace":
                moved = Trace.of(value)
                if own is not None and own.sha256 == moved.sha256:
                    found = self.model_copy(update={"trace": moved})
                    continue
                own = "drawn arrivals" if own is None else f"{own.name} (SHA-256 {own.sha256[:12]})"
            if value != own:
                option = f"--{name.replace('_', '-')}"
                raise LessonError(
                    f"{option} {value}: the policy was trained with {own}; leave {option} out"
                )
        return found


class ProfileNote(BaseModel):
    """Which profile it was: its identity, and what it was made from, for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: str
    model: str
    artefact: str
    prompts: str
    prompts_sha256: str


class Note(BaseModel):
    """What a bundle keeps of its training. `learned` and `held` are names of prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lesson: Lesson
    profile: ProfileNote
    learned: tuple[str, ...]
    held: tuple[str, ...]

    @classmethod
    def of(cls, lesson: Lesson, profile: Profile) -> Self:
        """Raises `LessonError`."""
        names, (learned, held) = profile.prompts.names, lesson.prompts(profile)
        return cls(
            lesson=lesson,
            profile=ProfileNote(
                identity=profile.identity,
                model=profile.model,
                artefact=profile.artefact,
                prompts=profile.origin.name,
                prompts_sha256=profile.origin.sha256,
            ),
            learned=tuple(names[row] for row in learned),
            held=tuple(names[row] for row in held),
        )

    @classmethod
    def read(cls, bundle: PolicyBundle, folder: Path) -> Self:
        """From the bundle in `folder`. Raises `PolicyError`."""
        try:
            return cls.model_validate(bundle.training)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise PolicyError(
                f"{folder} is damaged: what it was trained with is not whole ({place}); train it "
                "again"
            ) from error
