"""Scorers, one small class a file, all over the same calibration statistics."""

from pruners.importance.activation_norm import ActivationNorm
from pruners.importance.base import Importance, rank
from pruners.importance.mean_activation import MeanActivation
from pruners.importance.random import Random
from pruners.importance.weight_norm import WeightNorm

__all__ = ["ActivationNorm", "Importance", "MeanActivation", "Random", "WeightNorm", "rank"]
