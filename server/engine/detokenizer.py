"""Turns token ids into streamed text: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_UNFINISHED = "\ufffd"  # what a tokenizer shows for half a UTF-8 character
_MAX_UNFINISHED = 3  # bytes of a character that is not finished
_MAX_UNDECODED = 16  # tokens without a whole character, before decoding starts behind them
_TAIL_SIZES = range(6, 25)  # tokens at the prompt's end that decoding starts from
_MAX_CONTEXT = 48  # tokens


@dataclass(frozen=True, slots=True)
class StopRules:
    """When an answer ends, besides its length, and which of its special tokens are shown.

    The text of `shown` belongs to the answer; that of other special tokens is left out.
    """

    strings: tuple[str, ...] = ()
    token_ids: frozenset[int] = frozenset()
    include_in_output: bool = False
    shown: frozenset[int] = frozenset()


class Detokenizer:
    """Turns one answer's tokens into text as they come.

    The text is what the answer's tokens add to the decoded prompt, so a word's leading space is
    kept. Text that may begin a stop string is withheld until the next tokens decide. A stop string
    counts only if it ends behind the text of the first `min_tokens` tokens.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        stop: StopRules,
        prompt: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_rules = stop
        self._hidden = special_tokens(tokenizer) - stop.shown if stop.shown else None
        self._tokens = self._tail(prompt)
        self._exempt_tokens = len(self._tokens) + min_tokens  # whose text completes no stop string
        self._released = len(self._tokens)  # tokens whose text was returned
        self._context = 0  # where decoding starts, so that word-initial spaces come out right
        # Characters returned behind the text of `_released` tokens; below 0: missing ones.
        self._surplus = 0
        self._withheld = ""
        self._exempt = 0  # characters at the beginning of `_withheld` that complete no stop string
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Return text that this token completes; set `stopped_by` if it has a stop string."""
        self._tokens.append(token)
        before, now, start = self._decoded()
        unfinished = min(len(now) - len(now.rstrip(_UNFINISHED)), _MAX_UNFINISHED)
        if unfinished == 0:
            # Without text of its own, or in mid-character, a token is no context for the next.
            usable = now != before and not before.endswith(_UNFINISHED)
            if usable or len(self._tokens) - self._context > _MAX_CONTEXT:
                self._context = self._released
            self._released, self._surplus = len(self._tokens), 0
            return self._release(now[start:])
        certain = now[start : len(now) - unfinished]
        if len(self._tokens) - self._released > _MAX_UNDECODED:
            self._context, self._released, self._surplus = (
                self._released,
                len(self._tokens),
                -unfinished,
            )
        elif not now.startswith(before):
            return ""  # the tokenizer decodes these bytes together with the next ones
        else:
            self._surplus += len(certain)
        return self._release(certain)

    def finish(self) -> str:
        """Return the text that is still withheld when the answer ends."""
        rest = ""
        if self.stopped_by is None:
            _, now, start = self._decoded()
            rest = self._release(now[start:])
        rest, self._withheld = rest + self._withheld, ""
        return rest

    def _decoded(self) -> tuple[str, str, int]:
        """Return the latest text without and with unreleased tokens, and where the new starts."""
        before = self._decode(self._tokens[self._context : self._released])
        now = self._decode(self._tokens[self._context :])
        start = len(before) + self._surplus
        if not now.startswith(before):  # an unfinished character is whole now
            start = min(start, _common(before, now))
        return before, now, start

    def _release(self, text: str) -> str:
        """Return the text that cannot begin a stop string; withhold the rest."""
        text = self._withheld + text
        exempt = self._exempt if len(self._tokens) > self._exempt_tokens else len(text)
        ends = {s: text.find(s, max(0, exempt - len(s) + 1)) for s in self._stop_rules.strings}
        matches = [(at, string) for string, at in ends.items() if at >= 0]
        if matches:
            at, string = min(matches)
            self.stopped_by, self._withheld = string, ""
            return text[: at + len(string)] if self._stop_rules.include_in_output else text[:at]
        keep = max((_overlap(text, s) for s in self._stop_rules.strings), default=0)
        out = len(text) - keep
        self._withheld, self._exempt = text[out:], max(0, exempt - out)
        return text[:out]

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """Return the prompt's last tokens, from the beginning of a character on if possible."""
        for size in _TAIL_SIZES:
            tail = list(prompt[-size:])
            if size >= len(prompt) or not self._decode(tail).startswith(_UNFINISHED):
                break
        return tail

    def _decode(self, tokens: list[int]) -> str:
        if self._hidden is None:
            return str(self._tokenizer.decode(tokens, skip_special_tokens=True))
        shown = [token for token in tokens if token not in self._hidden]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> frozenset[int]:
    """Return the tokens whose text `decode` leaves out if it is to skip special tokens."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(token for token, entry in added if entry.special) | {
        *tokenizer.all_special_ids
    }


def _common(one: str, other: str) -> int:
    """Return how many leading characters are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
