"""Training-free recovery: a variant's outputs fitted to the base's from second moments alone."""

from pruners.recovery.correction import (
    Correction,
    Corrections,
    LowRank,
    Materialised,
    RecoveryError,
    corrected,
    from_tensors,
    to_tensors,
)
from pruners.recovery.recover import Bought, Recipe, Recovered, recover, recover_in_sequence

__all__ = [
    "Bought",
    "Correction",
    "Corrections",
    "LowRank",
    "Materialised",
    "Recipe",
    "Recovered",
    "RecoveryError",
    "corrected",
    "from_tensors",
    "recover",
    "recover_in_sequence",
    "to_tensors",
]
