"""The `logprobs` object of `/v1/completions`, whole or piece by piece."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.openai.token_text import LEAST, Offsets, TokenText, shown
from server.engine.sequence import TokenLogprob


@dataclass(frozen=True, slots=True)
class _Entry:
    """One token: its text, where that begins, and what is known of its probability."""

    token: str
    offset: int
    logprob: float | None
    top: dict[str, float] | None


class Scores:
    """One answer's tokens. Each is given out once, when its text is.

    `text_offset` counts characters of the answer's `text`. What is not in that text has no width:
    special tokens that were written, and what a stop string cut off.
    """

    def __init__(self, texts: TokenText) -> None:
        self._texts = texts
        self._offsets = Offsets()
        self._waiting: list[_Entry] = []

    def prompt(self, tokens: Sequence[int], scores: Sequence[TokenLogprob]) -> None:
        """Puts the echoed prompt in front; nothing predicts its first token."""
        parts = self._texts.prompt(tokens)
        for data, score in zip(parts, (None, *scores), strict=True):
            self._add(data, self._offsets.next(data), score)
        self._offsets = Offsets(len(b"".join(parts).decode(errors="replace")))

    def written(self, score: TokenLogprob) -> None:
        """Adds the next token of the answer."""
        at = self._offsets.next(self._texts.written(score.token))
        self._add(self._texts.data(score.token), at, score)

    def take(self, length: int, ended: bool) -> dict[str, object] | None:
        """The tokens that begin in the first `length` characters of the text, all if it `ended`.

        None if there are none before the end.
        """
        count = len(self._waiting)
        if not ended:
            count = sum(entry.offset < length for entry in self._waiting)
        found, self._waiting = self._waiting[:count], self._waiting[count:]
        if not found and not ended:
            return None
        return {
            "tokens": [entry.token for entry in found],
            "token_logprobs": [entry.logprob for entry in found],
            "top_logprobs": [entry.top for entry in found],
            "text_offset": [min(entry.offset, length) for entry in found],
        }

    def _add(self, data: bytes, offset: int, score: TokenLogprob | None) -> None:
        top: dict[str, float] | None = None
        if score is not None:
            # Tokens may have equal texts; the chosen one, listed first, keeps its place.
            top = {}
            for alternative, value in score.top:
                top.setdefault(self._texts.shown(alternative), max(value, LEAST))
        logprob = None if score is None else max(score.logprob, LEAST)
        self._waiting.append(_Entry(shown(data), offset, logprob, top))
