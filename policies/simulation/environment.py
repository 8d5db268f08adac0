"""The simulated server as a Gymnasium environment: a step decides on a request.

It is decided on when it arrives, and again when its prompt is about to be read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from policies.features import CLIP, choice_names, feature_names
from policies.observation import Objectives
from policies.simulation.choices import choice_labels, profile_choices
from policies.simulation.engine import EngineLimits
from policies.simulation.host import MAINS, HostScenario
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward
from policies.simulation.scenario import Scenario
from policies.simulation.server import SimulatedServer
from policies.simulation.traffic import Arrival, at_load

ALONE = 1e-3
"""A load at which each request finds the machine idle, so that its reward comes at once."""


@dataclass(frozen=True, slots=True)
class EpisodeSettings:
    """What episodes are drawn from. Each entry of a tuple has the same chance.

    `loads` are multiples of what full batches of the base can serve, `length` is the number of
    requests.
    """

    loads: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    objectives: tuple[Objectives, ...] = (Objectives(ttft=2.0, firm=True),)
    hosts: tuple[HostScenario, ...] = (MAINS,)
    length: int = 256
    limits: EngineLimits = field(default_factory=EngineLimits)


class TrafficEnvironment(gymnasium.Env[np.ndarray, np.int64]):
    """Replays traffic against a profile. Observations are `[features]` of `policies.features`.

    An action is the number of a choice (of variant and reader), or the next number to refuse. An
    action that is not open (see `action_masks`) refuses as well, or leaves the choice of the
    request's arrival. The reward is that of all requests
    that have ended since the last decision, so that the effect on the requests behind is part of
    it. The seed of `reset` determines the whole episode.
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
        """`prompts` are rows of the profile; features that are true in `hidden` read 0."""
        self.profile, self.reward = profile, reward
        self.episodes = episodes or EpisodeSettings()
        self._trace, self._prompts = trace, prompts
        labels = choice_labels(profile_choices(profile))
        features, self.choices = feature_names(labels), choice_names(labels)
        self.observation_space = gymnasium.spaces.Box(0.0, CLIP, (len(features),), np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(self.choices))
        self.hidden = np.zeros(len(features), bool) if hidden is None else hidden
        self._hides_any = bool(self.hidden.any())
        self.server: SimulatedServer | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw traffic, prompts, load, objectives and host of an episode."""
        super().reset(seed=seed)
        random, episodes = self.np_random, self.episodes
        length = min(episodes.length, len(self._trace))
        first = int(random.integers(len(self._trace) - length + 1))
        load = episodes.loads[random.integers(len(episodes.loads))]
        arrivals = at_load(
            self._trace[first : first + length],
            load,
            self.profile.rates,
            episodes.limits.max_running,
        )
        prompts = random.choice(self._prompts, length).tolist()
        scenario = Scenario(
            episodes.objectives[random.integers(len(episodes.objectives))],
            episodes.limits,
            episodes.hosts[random.integers(len(episodes.hosts))],
        )
        self.server = SimulatedServer(self.profile, arrivals, prompts, scenario)
        self.server.arrive()
        return self._features(), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take the choice for the current request and move on to the next arrival."""
        server = self.server
        assert server is not None, "reset comes first"
        choice = int(action)
        server.take(None if choice == len(self.choices) - 1 else choice)
        another = server.arrive()
        reward = 0.0
        for index in server.finished:
            reward += self.reward.of(server.outcome(index))
        server.finished.clear()
        features = self._features() if another else np.zeros(len(self.hidden), np.float32)
        return features, reward, not another, False, {}

    def action_masks(self) -> np.ndarray:
        """Return `[choices]` of bool: what is open for the current request."""
        assert self.server is not None, "reset comes first"
        return self.server.open_choices()

    def _features(self) -> np.ndarray:
        assert self.server is not None
        features = self.server.features()
        if self._hides_any:
            features[self.hidden] = 0.0
        return features
