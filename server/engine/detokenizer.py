"""From token ids to streamed text: whole characters only, and nothing of a stop string."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"  # what a tokenizer shows for half a UTF-8 character
_PARTS = 3  # bytes of a character that is not finished, at most
_GARBAGE = 16  # tokens that end in no whole character, before decoding starts behind them
_TAIL = range(6, 25)  # tokens of the prompt that decoding starts from
_LONGEST = 48  # tokens of context


@dataclass(frozen=True, slots=True)
class StopRules:
    """When an answer ends, besides its length."""

    strings: tuple[str, ...] = ()
    token_ids: frozenset[int] = frozenset()
    include_in_output: bool = False


class TextStream:
    """Turns one answer's tokens into text as they come.

    The text is what the answer's tokens add to the decoded prompt, so a word's leading space is
    kept. Text that could be the beginning of a stop string is held back until it is decided. A stop
    string counts only if it ends behind the text of the first `min_tokens` tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: StopRules,
        prompt: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens = self._tail(prompt)
        self._first = len(self._tokens) + min_tokens  # whose text may complete a stop string
        self._read = len(self._tokens)  # tokens whose text is out
        self._context = 0  # where decoding starts, so that word-initial spaces come out right
        self._early = (
            0  # characters behind those of `_read` tokens that are out, or before: missing
        )
        self._held = ""
        self._exempt = 0  # characters at the beginning of `_held` that complete no stop string
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Text that became certain with this token; may be empty. Sets `stopped_by` on a match."""
        self._tokens.append(token)
        before, now, start = self._decoded()
        unfinished = min(len(now) - len(now.rstrip(_UNFINISHED)), _PARTS)
        if unfinished == 0:
            # Without text of its own, or in mid-character, a token is no context for the next.
            usable = now != before and not before.endswith(_UNFINISHED)
            if usable or len(self._tokens) - self._context > _LONGEST:
                self._context = self._read
            self._read, self._early = len(self._tokens), 0
            return self._release(now[start:])
        certain = now[start : len(now) - unfinished]
        if len(self._tokens) - self._read > _GARBAGE:
            self._context, self._read, self._early = self._read, len(self._tokens), -unfinished
        elif not now.startswith(before):
            return ""  # bytes that a tokenizer decodes together, and cannot yet
        else:
            self._early += len(certain)
        return self._release(certain)

    def finish(self) -> str:
        """The text that was still held back when the answer ended."""
        rest = ""
        if self.stopped_by is None:
            _, now, start = self._decoded()
            rest = self._release(now[start:])
        rest, self._held = rest + self._held, ""
        return rest

    def _decoded(self) -> tuple[str, str, int]:
        """The latest text without and with tokens that were not read, and where the new begins."""
        before = self._decode(self._tokens[self._context : self._read])
        now = self._decode(self._tokens[self._context :])
        start = len(before) + self._early
        if not now.startswith(before):  # half a character that is whole by now
            start = min(start, _common(before, now))
        return before, now, start

    def _release(self, text: str) -> str:
        text = self._held + text
        exempt = self._exempt if len(self._tokens) > self._first else len(text)
        ends = {s: text.find(s, max(0, exempt - len(s) + 1)) for s in self._stop.strings}
        found = [(at, string) for string, at in ends.items() if at >= 0]
        if found:
            at, string = min(found)
            self.stopped_by, self._held = string, ""
            return text[: at + len(string)] if self._stop.include_in_output else text[:at]
        keep = max((_overlap(text, s) for s in self._stop.strings), default=0)
        out = len(text) - keep
        self._held, self._exempt = text[out:], max(0, exempt - out)
        return text[:out]

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """The prompt's last tokens, from the beginning of a character on where there is one."""
        for size in _TAIL:
            tail = list(prompt[-size:])
            if size >= len(prompt) or not self._decode(tail).startswith(_UNFINISHED):
                break
        return tail

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _common(one: str, other: str) -> int:
    """How many leading characters are equal."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
