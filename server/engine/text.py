"""From token ids to streamed text: whole characters only, and nothing of a stop string."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "�"  # what a tokenizer shows for half a UTF-8 character


@dataclass(frozen=True, slots=True)
class StopRules:
    """When an answer ends, besides its length."""

    strings: tuple[str, ...] = ()
    token_ids: frozenset[int] = frozenset()
    include_in_output: bool = False


class TextStream:
    """Turns one answer's tokens into text as they come.

    Text that could be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: StopRules) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens: list[int] = []
        self._read = 0  # tokens whose text is out
        self._context = 0  # where decoding starts, so that word-initial spaces come out right
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Text that became certain with this token; may be empty. Sets `stopped_by` on a match."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._context : self._read])
        now = self._decode(self._tokens[self._context :])
        if now.endswith(_UNFINISHED) and len(self._tokens) - self._read < 8:
            return ""
        self._context, self._read = self._read, len(self._tokens)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """The text that was still held back when the answer ended."""
        rest = ""
        if self.stopped_by is None:
            before = self._decode(self._tokens[self._context : self._read])
            rest = self._release(self._decode(self._tokens[self._context :])[len(before) :])
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, text: str) -> str:
        text = self._held + text
        found = [(text.find(s), s) for s in self._stop.strings if s in text]
        if found:
            at, string = min(found)
            self.stopped_by, self._held = string, ""
            return text[: at + len(string)] if self._stop.include_in_output else text[:at]
        keep = max((_overlap(text, s) for s in self._stop.strings), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return size
    return 0
