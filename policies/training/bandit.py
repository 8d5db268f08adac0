"""A contextual bandit: LinUCB with disjoint arms (Li et al. 2010, arXiv 1003.0146).

It credits each decision with that request's own reward, and knows nothing of what the decision did
to the requests behind it.
"""

import numpy as np

from policies.learned import NetworkLayers
from policies.simulation.environment import TrafficEnvironment
from policies.training.trainer import Tensors


class BanditTrainer:
    """A `Trainer`. `alpha` is how much the width of an arm's interval counts while it learns."""

    def __init__(self, environment: TrafficEnvironment, episodes: int, alpha: float = 0.5) -> None:
        self._environment, self._episodes, self._alpha = environment, episodes, alpha
        arms = len(environment.profile.variants) + 1
        features = len(environment.hidden)
        self._inverse = np.tile(np.eye(features + 1), (arms, 1, 1))
        self._earned = np.zeros((arms, features + 1))

    def round(self, seed: int, progress: float) -> list[float]:
        """See `Trainer`."""
        seeds = np.random.default_rng(seed).integers(2**31, size=self._episodes)
        return [self._episode(int(one)) for one in seeds]

    def _episode(self, seed: int) -> float:
        environment, theta = self._environment, self._theta()
        seen, _ = environment.reset(seed=seed)
        world = environment.world
        assert world is not None
        taken: list[tuple[np.ndarray, int]] = []
        total, ended = 0.0, False
        while not ended:
            point = np.append(seen, 1.0)
            width = np.sqrt(np.einsum("i,aij,j->a", point, self._inverse, point))
            value = theta @ point + self._alpha * width
            arm = int(np.where(environment.action_masks(), value, -np.inf).argmax())
            taken.append((point, arm))
            seen, earned, ended, _, _ = environment.step(np.int64(arm))
            total += earned
        for heard, (point, arm) in enumerate(taken):
            self._learn(point, arm, environment.reward.of(world.outcome(heard)))
        return total

    def _learn(self, point: np.ndarray, arm: int, reward: float) -> None:
        inverse = self._inverse[arm]
        along = inverse @ point
        inverse -= np.outer(along, along) / (1.0 + point @ along)
        self._earned[arm] += reward * point

    def _theta(self) -> np.ndarray:
        found: np.ndarray = np.einsum("aij,aj->ai", self._inverse, self._earned)
        return found

    def state(self) -> Tensors:
        """See `Trainer`."""
        return {"inverse": self._inverse.copy(), "earned": self._earned.copy()}

    def restore(self, state: Tensors) -> None:
        """See `Trainer`."""
        shapes = state["inverse"].shape, state["earned"].shape
        if shapes != (self._inverse.shape, self._earned.shape):
            raise ValueError("it is of other features or choices")
        self._inverse, self._earned = state["inverse"].copy(), state["earned"].copy()

    def layers(self) -> NetworkLayers:
        """See `Trainer`: one layer, without the widths."""
        theta = self._theta().astype(np.float32)
        return ((theta[:, :-1].copy(), theta[:, -1].copy()),)
