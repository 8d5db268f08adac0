"""What is known of a prompt before any model has read it, whoever found it out."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """Counts over the prompt's text. Ratios are 0..1; `mean_word` is in characters.

    `language` is an ISO 639-1 code, or "" where it cannot be told. `verbs`, `noun_chunks` and
    `dependency_span` (words between a word and its head, on average) are None where the backend
    does not parse.
    """

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
    language: str = ""
    verbs: int | None = None
    noun_chunks: int | None = None
    dependency_span: float | None = None
    backend: str = "patterns"

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


class Backend(Protocol):
    """One way to read a prompt."""

    name: str

    def analyze(self, text: str) -> PromptFeatures | None:
        """The features; None if the text would take longer than the backend may."""
        ...


def ends(text: str, first: int, last: int) -> str:
    """The first and the last words of a longer text, by their characters."""
    letters = 6  # of a word and the blank behind it, about
    if len(text) <= letters * (first + last):
        return text
    return f"{text[: letters * first]}\n{text[-letters * last :]}"
