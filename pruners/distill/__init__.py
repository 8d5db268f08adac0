"""Recovery by training: small tensors of a variant distilled from the base, which stays frozen."""

from pruners.distill.dtype import quick_dtype
from pruners.distill.loop import Trained, Training, train
from pruners.distill.student import Student, Tier

__all__ = ["Student", "Tier", "Trained", "Training", "quick_dtype", "train"]
