"""The backends behind one door: the one that was asked for, then those that are quicker."""

from collections import OrderedDict
from collections.abc import Callable

from controller.analyzer.features import Backend, PromptFeatures
from controller.analyzer.patterns import PatternBackend
from controller.analyzer.with_nltk import NltkBackend
from controller.analyzer.with_spacy import SpacyBackend

_KEPT = 1024  # prompts whose features are remembered
_LONGEST_KEPT = 10_000  # characters of one

BACKENDS: dict[str, Callable[[], Backend]] = {
    "spacy": SpacyBackend,
    "nltk": NltkBackend,
    "patterns": PatternBackend,
}
"""By name, the slowest first; each falls back to those behind it."""


class Analyzer:
    """Reads prompts. `fell_back(name)` hears each time a backend gave up on one.

    Raises `ImportError` if what the backend needs is not installed.
    """

    def __init__(
        self, backend: str = "patterns", fell_back: Callable[[str], None] = lambda name: None
    ) -> None:
        names = list(BACKENDS)
        self._backends = [BACKENDS[name]() for name in names[names.index(backend) :]]
        self._fell_back = fell_back
        self._known: OrderedDict[str, PromptFeatures] = OrderedDict()

    def __call__(self, text: str) -> PromptFeatures:
        """The features of a prompt."""
        if text in self._known:
            self._known.move_to_end(text)
            return self._known[text]
        found = self._read(text)
        if len(text) > _LONGEST_KEPT:
            return found
        self._known[text] = found
        if len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return found

    def _read(self, text: str) -> PromptFeatures:
        for backend in self._backends:
            found = backend.analyze(text)
            if found is not None:
                return found
            self._fell_back(backend.name)
        raise AssertionError("patterns read everything")
