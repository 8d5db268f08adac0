"""Recovery by training: small tensors of a variant distilled from the base, which stays frozen."""

from pruners.distill.dtype import fast_dtype
from pruners.distill.options import Tier, TrainingOptions
from pruners.distill.student import Student
from pruners.distill.trainer import TrainingResult, TrainingRows, train

__all__ = [
    "Student",
    "Tier",
    "TrainingOptions",
    "TrainingResult",
    "TrainingRows",
    "fast_dtype",
    "train",
]
