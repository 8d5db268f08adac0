"""Estimators with a state: each learns one quantity from the requests that were served."""

from policies.estimators.answer_length import AnswerLengthEstimator
from policies.estimators.dwell import DwellTracker
from policies.estimators.load import LoadEstimator
from policies.estimators.request_estimators import RequestEstimators
from policies.estimators.request_sizes import RequestSizes
from policies.estimators.wait_bias import WaitBiasEstimator

__all__ = [
    "AnswerLengthEstimator",
    "DwellTracker",
    "LoadEstimator",
    "RequestEstimators",
    "RequestSizes",
    "WaitBiasEstimator",
]
