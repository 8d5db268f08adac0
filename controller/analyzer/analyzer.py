"""The analyzer: the chosen backend first, then the faster ones."""

from collections import OrderedDict
from collections.abc import Callable

from controller.analyzer.features import Backend, PromptFeatures
from controller.analyzer.patterns import PatternBackend
from controller.analyzer.with_nltk import NltkBackend
from controller.analyzer.with_spacy import SpacyBackend
from pruners.support.errors import UserError

_CACHE_SIZE = 1024
"""Prompts whose features are cached."""
_MAX_CACHED_CHARACTERS = 10_000
"""Longer prompts are not cached."""

BACKENDS: dict[str, Callable[[], Backend]] = {
    "spacy": SpacyBackend,
    "nltk": NltkBackend,
    "patterns": PatternBackend,
}
"""By name, the slowest first. Each falls back to those behind it."""


class AnalyzerError(UserError):
    """What an analyzer needs is not installed. One clear line."""


class Analyzer:
    """Computes the features of prompts. Used by one thread at a time."""

    def __init__(
        self, backend: str = "patterns", on_fallback: Callable[[str], None] = lambda name: None
    ) -> None:
        """`on_fallback` is called with the name of each backend that has no time for a prompt.

        Raises `AnalyzerError` if what the backend needs is not installed.
        """
        names = list(BACKENDS)
        try:
            self._backends = [BACKENDS[name]() for name in names[names.index(backend) :]]
        except (ImportError, OSError) as error:
            raise AnalyzerError(f"analyzer '{backend}': {error}") from error
        self._on_fallback = on_fallback
        self._cache: OrderedDict[str, PromptFeatures] = OrderedDict()

    def __call__(self, text: str) -> PromptFeatures:
        """Return the features of a prompt."""
        if text in self._cache:
            self._cache.move_to_end(text)
            return self._cache[text]
        features = self._analyze(text)
        if len(text) > _MAX_CACHED_CHARACTERS:
            return features
        self._cache[text] = features
        if len(self._cache) > _CACHE_SIZE:
            self._cache.popitem(last=False)
        return features

    def _analyze(self, text: str) -> PromptFeatures:
        for backend in self._backends:
            features = backend.analyze(text)
            if features is not None:
                return features
            self._on_fallback(backend.name)
        raise AssertionError("the pattern backend never gives up")
