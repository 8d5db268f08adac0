"""What a prompt looks like, before any model has read it."""

from controller.analyzer.features import PromptFeatures, analyze

__all__ = ["PromptFeatures", "analyze"]
