"""Training-free recovery: a variant's outputs fitted to the base's from second moments alone."""

from pruners.recovery.recover import FitErrors, RecoveryOptions, RecoveryResult, recover

__all__ = ["FitErrors", "RecoveryOptions", "RecoveryResult", "recover"]
