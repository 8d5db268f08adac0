"""A random policy network over the features of the made-up profile's variants."""

from itertools import pairwise

import numpy as np

from policies.features import choice_names, feature_names
from policies.learned import NetworkLayers
from tests.support.paper import VARIANTS

FEATURES, CHOICES = len(feature_names(VARIANTS)), len(choice_names(VARIANTS))


def random_network(seed: int = 0) -> NetworkLayers:
    """Return two layers in float32, from features to choices, with 16 hidden units."""
    generator = np.random.default_rng(seed)
    return tuple(
        (
            generator.standard_normal((outputs, inputs)).astype(np.float32),
            generator.standard_normal(outputs).astype(np.float32),
        )
        for inputs, outputs in pairwise((FEATURES, 16, CHOICES))
    )
