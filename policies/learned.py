"""A trained policy: a small network in NumPy over the features of an observation."""

from collections.abc import Sequence

import numpy as np

from policies.features import cheapest_action, largest_cache, observation_vector, open_choices
from policies.observation import Action, Observation, Reason

NetworkLayers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Weights `[outputs, inputs]` and biases `[outputs]` of each layer in float32, with ReLU between
layers."""


class LearnedPolicy:
    """Takes the open choice of the highest value: a variant with or without a reader, or to refuse.

    `variants` are these choices in the order of the training, the base first. The KV cache is the
    largest that the shield allows. What it was not trained to choose is open only to requests that
    name it.
    """

    def __init__(self, name: str, variants: Sequence[str], layers: NetworkLayers) -> None:
        self.name = name
        self.variants = tuple(variants)
        self.layers = layers

    def values(self, features: np.ndarray) -> np.ndarray:
        """Return the value of each choice, `[..., choices]`, from features `[..., features]`."""
        *hidden, (weight, bias) = self.layers
        for hidden_weight, hidden_bias in hidden:
            features = np.maximum(features @ hidden_weight.T + hidden_bias, 0.0)
        values: np.ndarray = features @ weight.T + bias
        return values

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """Return the best open choice; if none is open, the first candidate.

        If that is blocked, the same with its smallest cache.
        """
        is_open = open_choices(observation, self.variants)
        if not is_open.any():
            first = observation.candidates[0].action.choice
            own = [c for c in observation.candidates if c.action.choice == first]
            best_own = next((c for c in own if c.blocked is None), own[-1])
            return best_own.action, Reason.LEAST_BAD
        values = self.values(observation_vector(observation, self.variants))
        best = int(np.where(is_open, values, -np.inf).argmax())
        if best == len(self.variants):
            return cheapest_action(observation), Reason.LATE
        return largest_cache(observation, self.variants[best]).action, Reason.LEARNED
