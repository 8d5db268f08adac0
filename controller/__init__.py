"""One decision for each request: which variant, which KV budget, and why."""

from controller.analyzer import Analyzer, PromptFeatures
from controller.catalogue import Catalogue
from controller.controller import Controller, Decision
from controller.engine_status import EngineStatus, SequenceStatus, StepRecord
from controller.incoming import IncomingRequest, RequestPreferences
from controller.observer import (
    ControllerSettings,
    StatusSources,
)
from controller.shield import ShieldSettings
from controller.step_time_model import StepTimeModel

__all__ = [
    "Analyzer",
    "Catalogue",
    "Controller",
    "ControllerSettings",
    "Decision",
    "EngineStatus",
    "IncomingRequest",
    "PromptFeatures",
    "RequestPreferences",
    "SequenceStatus",
    "ShieldSettings",
    "StatusSources",
    "StepRecord",
    "StepTimeModel",
]
