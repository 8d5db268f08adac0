"""A trained policy at work: a small network in NumPy over the observation's vector."""

from collections.abc import Sequence

import numpy as np

from policies.features import cheapest, largest_budget, open_choices, vector
from policies.observation import Action, Observation, Reason

NetworkLayers = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Weights `[out, in]` and biases `[out]` in float32, with ReLU between them."""


class LearnedPolicy:
    """Chooses the variant of the highest value among those that are open, or refuses.

    `variants` are in the order that it was trained with, the base first; its cache is the largest
    that the shield leaves.
    """

    def __init__(self, name: str, variants: Sequence[str], layers: NetworkLayers) -> None:
        self.name = name
        self.variants = tuple(variants)
        self.layers = layers

    def values(self, features: np.ndarray) -> np.ndarray:
        """Of each choice, from a vector `[features]` or many `[rows, features]`."""
        *hidden, (weight, bias) = self.layers
        for before, shift in hidden:
            features = np.maximum(features @ before.T + shift, 0.0)
        found: np.ndarray = features @ weight.T + bias
        return found

    def choose(self, observation: Observation) -> tuple[Action, Reason]:
        """The best open choice; where nothing is open, the smallest cache of the base."""
        open_ = open_choices(observation, self.variants)
        if not open_.any():
            base = observation.candidates[0].action.variant
            mine = [c for c in observation.candidates if c.action.variant == base]
            return mine[-1].action, Reason.LEAST_BAD
        values = self.values(vector(observation, self.variants))
        best = int(np.where(open_, values, -np.inf).argmax())
        if best == len(self.variants):
            return cheapest(observation), Reason.LATE
        return largest_budget(observation, self.variants[best]).action, Reason.LEARNED
