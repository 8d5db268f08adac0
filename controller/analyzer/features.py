"""Features of a prompt's text, by regular expressions: microseconds, no models, no data files."""

import re
from dataclasses import dataclass
from functools import lru_cache

_WORDS_READ = 400  # of a long prompt the beginning and the end are read
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE = re.compile(r"[.!?]+(?=\s|$)")
_CODE = re.compile(
    r"```|\bdef \w+\(|\bclass \w+[:(]|\bimport \w+|\breturn\b.*[;)]|#include|</?\w+>|[{};]\s*$"
    r"|\bSELECT\b.+\bFROM\b|=>|==|!=",
    re.MULTILINE,
)
_STEPS = re.compile(
    r"\bstep[- ]by[- ]step\b|\bfirst(?:ly)?\b|\bsecond(?:ly)?\b|\bthen\b|\bnext\b|\bfinally\b"
    r"|\bafter that\b|^\s*(?:\d+[.)]|[-*])\s",
    re.IGNORECASE | re.MULTILINE,
)
_REASONING = re.compile(
    r"\b(?:why|how|prove|derive|explain|compare|analy[sz]e|evaluate|calculate|solve|justify"
    r"|because|therefore|if|unless|assume)\b",
    re.IGNORECASE,
)
_INSTRUCTION = re.compile(
    r"(?:^|[.!?:]\s+|\band\s+|\bplease\s+)(?:write|list|give|explain|describe|summari[sz]e"
    r"|translate|compare|create|find|classify|rewrite|generate|identify|name|tell|make|provide"
    r"|calculate|suggest|convert|answer|use|show|extract|do not|don't|include|avoid)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """Counts over the prompt's text. Ratios are 0..1; `mean_word` is in characters."""

    words: int
    sentences: int
    questions: int
    numbers: int
    code_marks: int
    step_cues: int
    reasoning_cues: int
    instructions: int
    distinct_ratio: float
    mean_word: float

    @property
    def complexity(self) -> float:
        """A readable 0..1 score: how much the prompt asks for, not how good an answer will be.

        Each term saturates, so that no single one decides. It is for people and dashboards; what a
        variant loses on a prompt is a different question.
        """
        terms = (
            (0.25, self.words, 120),
            (0.20, self.reasoning_cues, 4),
            (0.15, self.step_cues, 4),
            (0.15, self.code_marks, 3),
            (0.10, self.instructions + self.questions, 4),
            (0.10, self.numbers, 6),
            (0.05, max(0.0, self.mean_word - 3.5), 3.0),
        )
        return round(sum(weight * value / (value + full / 2) for weight, value, full in terms), 4)


@lru_cache(maxsize=1024)
def analyze(text: str) -> PromptFeatures:
    """Reads a prompt; of a very long one, the first and the last words."""
    words = _WORD.findall(text)
    count = len(words)
    if count > _WORDS_READ:
        half = 6 * _WORDS_READ // 2  # about six characters a word
        text = f"{text[:half]}\n{text[-half:]}"
        words = words[: _WORDS_READ // 2] + words[-_WORDS_READ // 2 :]
    return PromptFeatures(
        words=count,
        sentences=len(_SENTENCE.findall(text)),
        questions=text.count("?"),
        numbers=len(_NUMBER.findall(text)),
        code_marks=len(_CODE.findall(text)),
        step_cues=len(_STEPS.findall(text)),
        reasoning_cues=len(_REASONING.findall(text)),
        instructions=len(_INSTRUCTION.findall(text)),
        distinct_ratio=len({w.lower() for w in words}) / len(words) if words else 0.0,
        mean_word=sum(map(len, words)) / len(words) if words else 0.0,
    )
