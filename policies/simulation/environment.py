"""The simulated world as a Gymnasium environment: one step is one request's decision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from policies.features import CLIP, choices, feature_names
from policies.observation import Objectives
from policies.simulation.engine import EngineLimits
from policies.simulation.host import MAINS, HostScenario
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward
from policies.simulation.server import SimulatedServer
from policies.simulation.traffic import Arrival, at_load

ALONE = 1e-3
"""A load at which nothing carries over from one request to the next."""


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """What an episode is drawn from, each with equal chances.

    `loads` are over what a full batch of the base gets done; at `ALONE` every request finds the
    machine idle, and its reward comes at once. `length` is the number of decisions.
    """

    loads: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    objectives: tuple[Objectives, ...] = (Objectives(ttft=2.0, firm=True),)
    hosts: tuple[HostScenario, ...] = (MAINS,)
    length: int = 256
    limits: EngineLimits = field(default_factory=EngineLimits)


class TrafficEnvironment(gymnasium.Env[np.ndarray, np.int64]):
    """Replays traffic against the profile. The observation is `policies.features.vector`'s.

    An action is a variant's number, or the last one to refuse. What is not open (`action_masks`)
    counts as a refusal. The reward is that of all requests that ended since the last decision, so
    what a choice does to those that wait behind it is felt. Deterministic by the seed of `reset`.
    """

    def __init__(
        self,
        profile: Profile,
        trace: Sequence[Arrival],
        prompts: np.ndarray,
        reward: Reward,
        episodes: EpisodeSettings | None = None,
        hidden: np.ndarray | None = None,
    ) -> None:
        """`prompts` are the rows of the profile that may be asked; `hidden` features read 0."""
        self.profile, self.reward = profile, reward
        self.episodes = episodes or EpisodeSettings()
        self._trace, self._prompts = trace, prompts
        features, options = feature_names(profile.variants), choices(profile.variants)
        self.observation_space = gymnasium.spaces.Box(0.0, CLIP, (len(features),), np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(options))
        self.hidden = np.zeros(len(features), bool) if hidden is None else hidden
        self._blind = bool(self.hidden.any())
        self.world: SimulatedServer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draws traffic, prompts, load, objectives and host for an episode."""
        super().reset(seed=seed)
        chance, drawn = self.np_random, self.episodes
        length = min(drawn.length, len(self._trace))
        first = int(chance.integers(len(self._trace) - length + 1))
        load = drawn.loads[chance.integers(len(drawn.loads))]
        self.world = SimulatedServer(
            self.profile,
            at_load(
                self._trace[first : first + length],
                load,
                self.profile.rates,
                drawn.limits.max_running,
            ),
            chance.choice(self._prompts, length).tolist(),
            drawn.objectives[chance.integers(len(drawn.objectives))],
            drawn.limits,
            drawn.hosts[chance.integers(len(drawn.hosts))],
        )
        self.world.arrive()
        return self._seen(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Takes the choice for the request at hand and moves on to the next arrival."""
        world = self.world
        assert world is not None, "reset comes first"
        chosen = int(action)
        refuse = chosen == len(self.profile.variants)
        world.take(None if refuse else chosen)
        going_on = world.arrive()
        earned = 0.0
        for index in world.finished:
            earned += self.reward.of(world.outcome(index))
        world.finished.clear()
        seen = self._seen() if going_on else np.zeros(len(self.hidden), np.float32)
        return seen, earned, not going_on, False, {}

    def _seen(self) -> np.ndarray:
        assert self.world is not None
        found = self.world.vector()
        if self._blind:
            found[self.hidden] = 0.0
        return found

    def action_masks(self) -> np.ndarray:
        """Which choices are open for the request at hand."""
        assert self.world is not None, "reset comes first"
        return self.world.mask()
