"""The features of a prompt, and the protocol of backends that compute them."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class PromptFeatures:
    """Counts over a prompt's text.

    `step_cues` and `reasoning_cues` count words such as "then" and "why". `distinct_ratio` is the
    share (0..1) of distinct words and `mean_word` the mean length of words in characters.
    `language` is an ISO 639-1 code, or "" if unknown. `verbs`, `noun_chunks` and `dependency_span`
    (mean number of words between a word and its head) are None if the backend does not parse.
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
        """A score from 0 to 1 of how much the prompt asks for. For people and dashboards.

        The sum of weight * value / (value + full / 2): each term saturates, so that no single one
        decides. It does not predict what a variant loses on the prompt.
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
    """One way to compute features. `name` is its name in the settings."""

    name: str

    def analyze(self, text: str) -> PromptFeatures | None:
        """Return the features; None if the text would take too long."""
        ...


def first_and_last_words(text: str, first: int, last: int) -> str:
    """Return about the `first` and the `last` words of a longer text, cut by characters."""
    letters = 6  # of an average word and the blank behind it
    if len(text) <= letters * (first + last):
        return text
    return f"{text[: letters * first]}\n{text[-letters * last :]}"
