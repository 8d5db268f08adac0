"""One decision per request: which variant, which KV budget, and why."""

from controller.analyzer import Analyzer, PromptFeatures
from controller.catalogue import Catalogue
from controller.controller import Controller, Decision, Hints, Newcomer
from controller.engine_status import EngineLoad, SequenceLoad, StepRecord
from controller.shield import ShieldSettings
from controller.step_time_model import StepModel

__all__ = [
    "Analyzer",
    "Catalogue",
    "Controller",
    "Decision",
    "EngineLoad",
    "Hints",
    "Newcomer",
    "PromptFeatures",
    "SequenceLoad",
    "ShieldSettings",
    "StepModel",
    "StepRecord",
]
