"""Training-free recovery: a variant's outputs fitted to the base's from second moments alone."""

from pruners.correction import (
    Correction,
    Corrections,
    InputCorrection,
    LowRankCorrection,
    RecoveryError,
    RefitCorrection,
    constant_correction,
    from_tensors,
    to_tensors,
)
from pruners.recovery.recover import Bought, Recipe, Recovered, recover

__all__ = [
    "Bought",
    "Correction",
    "Corrections",
    "InputCorrection",
    "LowRankCorrection",
    "Recipe",
    "Recovered",
    "RecoveryError",
    "RefitCorrection",
    "constant_correction",
    "from_tensors",
    "recover",
    "to_tensors",
]
