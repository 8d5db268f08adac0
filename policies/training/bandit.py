"""A contextual bandit: LinUCB with disjoint arms (Li et al. 2010, arXiv 1003.0146).

Each decision is credited with the reward of its own request; its effect on the requests behind is
not part of the model.
"""

import numpy as np

from policies.learned import NetworkLayers
from policies.simulation.environment import TrafficEnvironment
from policies.training.trainer import TrainerState


class BanditTrainer:
    """A `PolicyTrainer` of one linear model for each choice (arm).

    A round has `episodes` episodes. While it learns, `alpha` widths of an arm's confidence interval
    are added to its predicted reward.
    """

    def __init__(self, environment: TrafficEnvironment, episodes: int, alpha: float = 0.5) -> None:
        self._environment, self._episodes, self._alpha = environment, episodes, alpha
        arms = len(environment.choices)
        inputs = len(environment.hidden) + 1  # a constant input for the bias
        self._inverse = np.tile(np.eye(inputs), (arms, 1, 1))
        self._weighted_rewards = np.zeros((arms, inputs))

    def run_round(self, seed: int, progress: float) -> list[float]:
        """Learn for a round. See `PolicyTrainer`."""
        seeds = np.random.default_rng(seed).integers(2**31, size=self._episodes)
        return [self._run_episode(int(one)) for one in seeds]

    def _run_episode(self, seed: int) -> float:
        environment, weights = self._environment, self._weights()
        features, _ = environment.reset(seed=seed)
        server = environment.server
        assert server is not None
        decisions: list[tuple[int, np.ndarray, int]] = []  # request, features, arm
        total, ended = 0.0, False
        while not ended:
            inputs = np.append(features, 1.0)
            width = np.sqrt(np.einsum("i,aij,j->a", inputs, self._inverse, inputs))
            value = weights @ inputs + self._alpha * width
            arm = int(np.where(environment.action_masks(), value, -np.inf).argmax())
            decisions.append((server.current, inputs, arm))
            features, reward, ended, _, _ = environment.step(np.int64(arm))
            total += reward
        for index, inputs, arm in decisions:
            self._learn(inputs, arm, environment.reward.of(server.outcome(index)))
        return total

    def _learn(self, inputs: np.ndarray, arm: int, reward: float) -> None:
        """Add an observation to an arm's ridge regression (Sherman-Morrison). Inputs `[inputs]`."""
        inverse = self._inverse[arm]
        projected = inverse @ inputs
        inverse -= np.outer(projected, projected) / (1.0 + inputs @ projected)
        self._weighted_rewards[arm] += reward * inputs

    def _weights(self) -> np.ndarray:
        """Return the arms' coefficients, `[arms, inputs]`."""
        weights: np.ndarray = np.einsum("aij,aj->ai", self._inverse, self._weighted_rewards)
        return weights

    def state(self) -> TrainerState:
        """Return inverses `[arms, inputs, inputs]` and weighted rewards `[arms, inputs]`."""
        return {"inverse": self._inverse.copy(), "earned": self._weighted_rewards.copy()}

    def restore(self, state: TrainerState) -> None:
        """Continue from a state. Raises `KeyError` or `ValueError` if it does not fit."""
        shapes = state["inverse"].shape, state["earned"].shape
        if shapes != (self._inverse.shape, self._weighted_rewards.shape):
            raise ValueError("it is of other features or choices")
        self._inverse = state["inverse"].copy()
        self._weighted_rewards = state["earned"].copy()

    def layers(self) -> NetworkLayers:
        """Return the policy as one linear layer, without the confidence intervals."""
        weights = self._weights().astype(np.float32)
        return ((weights[:, :-1].copy(), weights[:, -1].copy()),)
