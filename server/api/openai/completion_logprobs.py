"""The `logprobs` object of `/v1/completions`, whole or in parts."""

from collections.abc import Sequence
from dataclasses import dataclass

from server.api.openai.token_text import MIN_LOGPROB, TextOffsets, TokenText, id_name, shown
from server.engine.sequence import TokenLogprob


@dataclass(frozen=True, slots=True)
class _TokenEntry:
    """One token: its text, its position in the answer's text, and its log-probability in nats.

    `top` maps the texts of the most likely tokens to their log-probabilities.
    """

    token: str
    offset: int
    logprob: float | None
    top: dict[str, float] | None


class CompletionLogprobs:
    """The tokens of one answer; each is taken once, together with its text.

    `text_offset` counts characters of the answer's `text`. What is not in that text has no width:
    special tokens that were written, unless the text `keeps_special` ones, and what a stop string
    cut off. With `as_ids` tokens are named `token_id:N`.
    """

    def __init__(self, texts: TokenText, as_ids: bool = False, keeps_special: bool = False) -> None:
        self._texts = texts
        self._as_ids = as_ids
        self._written = texts.data if keeps_special else texts.written
        self._offsets = TextOffsets()
        self._pending: list[_TokenEntry] = []

    def add_prompt(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Add the echoed prompt, before anything else; its first token has no log-probability."""
        parts = self._texts.prompt(tokens)
        for token, data, logprob in zip(tokens, parts, (None, *logprobs), strict=True):
            name = id_name(token) if self._as_ids else shown(data)
            self._add(name, self._offsets.next(data), logprob)
        self._offsets = TextOffsets(len(b"".join(parts).decode(errors="replace")))

    def add_written(self, logprob: TokenLogprob) -> None:
        """Add the next token of the answer."""
        offset = self._offsets.next(self._written(logprob.token))
        self._add(self._name(logprob.token), offset, logprob)

    def take(self, length: int, ended: bool) -> dict[str, object] | None:
        """Return the tokens that begin in the first `length` characters; all if the text `ended`.

        Return None if there are none before the end.
        """
        count = len(self._pending)
        if not ended:
            count = sum(entry.offset < length for entry in self._pending)
        taken, self._pending = self._pending[:count], self._pending[count:]
        if not taken and not ended:
            return None
        return {
            "tokens": [entry.token for entry in taken],
            "token_logprobs": [entry.logprob for entry in taken],
            "top_logprobs": [entry.top for entry in taken],
            "text_offset": [min(entry.offset, length) for entry in taken],
        }

    def _name(self, token: int) -> str:
        return id_name(token) if self._as_ids else self._texts.shown(token)

    def _add(self, name: str, offset: int, scored: TokenLogprob | None) -> None:
        top: dict[str, float] | None = None
        if scored is not None:
            # Tokens may have equal texts; the chosen one, listed first, keeps its place.
            top = {}
            for token, value in scored.top:
                top.setdefault(self._name(token), max(value, MIN_LOGPROB))
        logprob = None if scored is None else max(scored.logprob, MIN_LOGPROB)
        self._pending.append(_TokenEntry(name, offset, logprob, top))
