"""Training a policy in the simulation, without some of what it sees if asked to."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from policies.bundle import PolicyKind
from policies.features import hidden_columns
from policies.learned import NetworkLayers
from policies.simulation.environment import EpisodeSettings, TrafficEnvironment
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward
from policies.simulation.traffic import Arrival
from policies.training.bandit import BanditTrainer
from policies.training.checkpoint import Checkpoint, CheckpointError, load_checkpoint
from policies.training.dqn import DqnSettings, DqnTrainer
from policies.training.trainer import Trainer

ROUND = 10
"""EpisodeSettings between checkpoints."""

FeatureGroup = Literal["host", "prompt"]
FEATURE_GROUPS: tuple[FeatureGroup, ...] = ("host", "prompt")


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What to train. `blind` hides the features of the host or of the prompt, for ablations."""

    kind: PolicyKind = "dqn"
    episodes: int = 500
    reward: Reward = field(default_factory=Reward)
    drawn: EpisodeSettings = field(default_factory=EpisodeSettings)
    dqn: DqnSettings = field(default_factory=DqnSettings)
    blind: FeatureGroup | None = None
    seed: int = 0

    def __str__(self) -> str:
        """The plan in a few words."""
        blind = "" if self.blind is None else f" without {self.blind}"
        return (
            f"{self.kind}{blind}, {self.episodes} episodes, seed {self.seed}, reward "
            f"{self.reward.name} with {self.reward.lost:g} for a lost request"
        )


def train(
    profile: Profile,
    trace: Sequence[Arrival],
    prompts: np.ndarray,
    plan: TrainingPlan,
    checkpoint: Path | None = None,
    tick: Callable[[int], None] = lambda episodes: None,
) -> tuple[NetworkLayers, list[float]]:
    """The network and each episode's reward. Single-threaded and deterministic by the plan's seed.

    `prompts` are the profile's rows to learn from. With a `checkpoint` file an interrupted call
    goes on from its last round, to the same result; the file stays. Raises `CheckpointError`.
    """
    environment = TrafficEnvironment(
        profile,
        trace,
        prompts,
        plan.reward,
        plan.drawn,
        hidden_columns(plan.blind, profile.variants),
    )
    trainer = _trainer(environment, plan)
    identity = identity_of(profile, trace, prompts, plan)
    found = None if checkpoint is None else load_checkpoint(checkpoint, identity)
    rounds, rewards = 0, []
    if found is not None:
        try:
            trainer.restore(found.state)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise CheckpointError(
                f"{checkpoint} is damaged: {reason}; delete it to start anew"
            ) from error
        rounds, rewards = found.rounds, list(found.rewards)
        tick(rounds * ROUND)
    wanted = max(1, plan.episodes // ROUND)
    seeds = np.random.default_rng(plan.seed).integers(2**31, size=wanted)
    for number in range(rounds, wanted):
        rewards += trainer.round(int(seeds[number]), number / wanted)
        if checkpoint is not None:
            state = trainer.state()
            Checkpoint(identity, str(plan), number + 1, rewards, state).save(checkpoint)
        tick(ROUND)
    return _blinded(trainer.layers(), environment.hidden), rewards


def _trainer(environment: TrafficEnvironment, plan: TrainingPlan) -> Trainer:
    if plan.kind == "bandit":
        return BanditTrainer(environment, ROUND)
    return DqnTrainer(environment, plan.dqn, ROUND, plan.seed)


def _blinded(layers: NetworkLayers, hidden: np.ndarray) -> NetworkLayers:
    """The same network that ignores what was hidden, whatever it is shown."""
    (weight, bias), *rest = layers
    weight = weight.copy()
    weight[:, hidden] = 0.0
    return ((weight, bias), *rest)


def identity_of(
    profile: Profile, trace: Sequence[Arrival], prompts: np.ndarray, plan: TrainingPlan
) -> str:
    """Equal for trainings that come to the same weights: 32 hexadecimal digits."""
    digest = hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode())
    digest.update(profile.identity.encode() + prompts.tobytes())
    digest.update(json.dumps(list(trace)).encode())
    return digest.hexdigest()[:32]


def split(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on and to test with, 80 to 20, by each prompt's name alone."""
    held = np.array([int(name, 16) % 5 == 0 for name in names])
    return np.flatnonzero(~held), np.flatnonzero(held)
