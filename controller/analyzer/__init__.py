"""Features of a prompt's text, before any model has read it."""

from controller.analyzer.analyzer import BACKENDS, Analyzer, AnalyzerError
from controller.analyzer.features import PromptFeatures

__all__ = ["BACKENDS", "Analyzer", "AnalyzerError", "PromptFeatures"]
