"""Training-free recovery: a variant's outputs fitted to the base's from second moments alone."""

from pruners.correction import (
    Correction,
    Corrections,
    Entry,
    LowRank,
    Materialised,
    RecoveryError,
    constant,
    from_tensors,
    to_tensors,
)
from pruners.recovery.recover import Bought, Recipe, Recovered, recover

__all__ = [
    "Bought",
    "Correction",
    "Corrections",
    "Entry",
    "LowRank",
    "Materialised",
    "Recipe",
    "Recovered",
    "RecoveryError",
    "constant",
    "from_tensors",
    "recover",
    "to_tensors",
]
