"""Training a policy in the simulation, if asked to without some of its features."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from policies.bundle import PolicyKind
from policies.features import FeatureGroup, hidden_columns
from policies.learned import NetworkLayers
from policies.simulation.choices import choice_labels, profile_choices
from policies.simulation.environment import EpisodeSettings, TrafficEnvironment
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward
from policies.simulation.traffic import Arrival
from policies.training.bandit import BanditTrainer
from policies.training.checkpoint import CheckpointError, TrainingCheckpoint, load_checkpoint
from policies.training.dqn import DqnSettings, DqnTrainer
from policies.training.trainer import PolicyTrainer

ROUND = 10
"""Episodes between checkpoints."""
_IDENTITY_KEYS = {"episode_settings": "drawn", "hidden_group": "blind"}
"""Keys of the identity that differ from the names of a plan's fields."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """What to train, and how.

    `hidden_group` hides the features of the host or of the prompt, to measure what they are worth.
    """

    kind: PolicyKind = "dqn"
    episodes: int = 500
    reward: Reward = field(default_factory=Reward)
    episode_settings: EpisodeSettings = field(default_factory=EpisodeSettings)
    dqn: DqnSettings = field(default_factory=DqnSettings)
    hidden_group: FeatureGroup | None = None
    seed: int = 0

    def __str__(self) -> str:
        """Return the plan in a few words."""
        without = "" if self.hidden_group is None else f" without {self.hidden_group}"
        return (
            f"{self.kind}{without}, {self.episodes} episodes, seed {self.seed}, reward "
            f"{self.reward.name} with {self.reward.lost:g} for a lost request"
        )


def train(
    profile: Profile,
    trace: Sequence[Arrival],
    prompts: np.ndarray,
    plan: TrainingPlan,
    checkpoint: Path | None = None,
    on_episodes: Callable[[int], None] = lambda episodes: None,
) -> tuple[NetworkLayers, list[float]]:
    """Train; return the network and each episode's reward.

    Single-threaded, and deterministic by the plan's seed. `prompts` are the rows of the profile to
    learn from. With a `checkpoint` file an interrupted call resumes after its last round, with the
    same result; the file stays. `on_episodes` is called with the number of episodes just done.
    Raises `CheckpointError`.
    """
    hidden = hidden_columns(plan.hidden_group, choice_labels(profile_choices(profile)))
    environment = TrafficEnvironment(
        profile, trace, prompts, plan.reward, plan.episode_settings, hidden
    )
    trainer = _trainer(environment, plan)
    identity = identity_of(profile, trace, prompts, plan)
    rounds, rewards = _resume(trainer, checkpoint, identity)
    if rounds:
        on_episodes(rounds * ROUND)
    total = max(1, plan.episodes // ROUND)
    seeds = np.random.default_rng(plan.seed).integers(2**31, size=total)
    for number in range(rounds, total):
        rewards += trainer.run_round(int(seeds[number]), number / total)
        if checkpoint is not None:
            state = trainer.state()
            TrainingCheckpoint(identity, str(plan), number + 1, rewards, state).save(checkpoint)
        on_episodes(ROUND)
    return _without_columns(trainer.layers(), environment.hidden), rewards


def _resume(trainer: PolicyTrainer, path: Path | None, identity: str) -> tuple[int, list[float]]:
    """Restore a trainer from its checkpoint, if there is one; return rounds done and rewards."""
    checkpoint = None if path is None else load_checkpoint(path, identity)
    if checkpoint is None:
        return 0, []
    try:
        trainer.restore(checkpoint.state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} is damaged: {reason}; delete it to start anew") from error
    return checkpoint.rounds, list(checkpoint.rewards)


def _trainer(environment: TrafficEnvironment, plan: TrainingPlan) -> PolicyTrainer:
    if plan.kind == "bandit":
        return BanditTrainer(environment, ROUND)
    return DqnTrainer(environment, plan.dqn, ROUND, plan.seed)


def _without_columns(layers: NetworkLayers, hidden: np.ndarray) -> NetworkLayers:
    """Return the network with weights of 0 for the features where `hidden` `[features]` is true."""
    (weight, bias), *rest = layers
    weight = weight.copy()
    weight[:, hidden] = 0.0
    return ((weight, bias), *rest)


def identity_of(
    profile: Profile, trace: Sequence[Arrival], prompts: np.ndarray, plan: TrainingPlan
) -> str:
    """Return 32 hexadecimal digits, equal for trainings that lead to the same weights."""
    values = {_IDENTITY_KEYS.get(name, name): value for name, value in asdict(plan).items()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    digest.update(profile.identity.encode() + prompts.tobytes())
    digest.update(json.dumps(list(trace)).encode())
    return digest.hexdigest()[:32]


def split_prompts(names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and the rows to test with, 80 to 20.

    A prompt's name (hexadecimal digits) alone decides, so that a prompt is always on one side.
    """
    is_test = np.array([int(name, 16) % 5 == 0 for name in names])
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)
