"""One decision per request: which variant, which KV budget, and why."""

from controller.analyzer import Analyzer, PromptFeatures
from controller.catalogue import Catalogue
from controller.controller import Controller, Decision, IncomingRequest, RequestPreferences
from controller.engine_status import EngineStatus, SequenceStatus, StepRecord
from controller.shield import ShieldSettings
from controller.step_time_model import StepTimeModel

__all__ = [
    "Analyzer",
    "Catalogue",
    "Controller",
    "Decision",
    "EngineStatus",
    "IncomingRequest",
    "PromptFeatures",
    "RequestPreferences",
    "SequenceStatus",
    "ShieldSettings",
    "StepRecord",
    "StepTimeModel",
]
