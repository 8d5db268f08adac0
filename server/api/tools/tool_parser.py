"""Splits the text of an answer into content and tool calls, as it comes."""

import re
from collections.abc import Collection
from functools import lru_cache

from server.api.tools.call_reader import CallReader
from server.api.tools.pieces import CallArguments, CallBegun, CallBroken, ContentText, Piece
from server.api.tools.tool_form import ToolForm

_BLANKS, _SEPARATORS = re.compile(r"\s*"), re.compile(r"[\s;,]*")  # that follow a call


class ToolParser:
    """The parser of one answer. What is no whole call of one of the tools `names` is content.

    At most `max_calls` are passed on; further ones are left out. `calls` counts whole calls,
    `begun` also those that broke off.
    """

    def __init__(
        self, form: ToolForm, names: Collection[str], max_calls: int | None = None
    ) -> None:
        self._form = form
        self._names = frozenset(names)
        self._max_calls = max_calls
        self._begin, self._unfinished = _patterns(form)
        self._reader: CallReader | None = None
        self._end = ""  # what is to stand behind the value that was read last
        self._ending = False  # that value has ended, and its end mark is not seen
        self._lead = ""  # text before a value, which is content if that is no call
        self._pending = ""  # text that is not decided on
        self._new_line = True  # the text so far is empty or ends with a line break
        self._behind_call = False  # nothing but blanks came since
        self.calls = self.begun = 0

    def push(self, text: str) -> list[Piece]:
        """Return what a further text of the answer adds."""
        self._pending += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return self._within_limit(pieces)

    def finish(self) -> list[Piece]:
        """Return what is left when the answer ends."""
        pieces: list[Piece] = []
        reader = self._reader
        if reader is not None:
            reader.finish()
            self._close_reader(reader, pieces)
        if self._ending and self._end.startswith(self._pending.lstrip()):
            self._pending = ""
        self._ending = False
        self._skip_blanks()
        self._content(self._pending, pieces)
        self._pending = ""
        return self._within_limit(pieces)

    def _advance(self, pieces: list[Piece]) -> bool:
        """Take a step; return whether there may be another one with the text so far."""
        if self._reader is not None:
            return self._read(self._reader, pieces)
        if self._ending and not self._pass_end():
            return False
        self._skip_blanks()
        pattern = self._begin[self._new_line]
        found = pattern.search(self._pending)
        if found is None:
            undecided = self._unfinished.search(self._pending)
            at = len(self._pending) if undecided is None else undecided.start()
            self._content(self._pending[:at], pieces)
            self._pending = self._pending[at:]
            return False
        self._content(self._pending[: found.start()], pieces)
        self._lead, self._pending = found[0], self._pending[found.end() :]
        self._end = dict(self._form.marks).get(found["mark"] or "", "")
        self._reader = CallReader(self._names, self.begun, self._form.named)
        return bool(self._pending)

    def _read(self, reader: CallReader, pieces: list[Piece]) -> bool:
        found, self._pending = reader.push(self._pending)
        pieces += found
        if not reader.ended and not reader.failed:
            return False
        self._close_reader(reader, pieces)
        return True

    def _close_reader(self, reader: CallReader, pieces: list[Piece]) -> None:
        """Go on behind a value; give back what is no call."""
        self._reader = None
        self.calls += reader.calls
        self.begun += reader.calls
        if reader.calls:
            self._lead = ""
        if reader.ended:
            self._ending, self._behind_call, self._new_line = True, True, True
            return
        given_back = self._lead + reader.raw
        if reader.broken is not None:
            pieces.append(CallBroken(reader.broken, given_back))
            self.begun += 1
            self._new_line = self._behind_call = False
        else:
            self._content(given_back, pieces)

    def _pass_end(self) -> bool:
        """Skip the mark behind a value; return whether it is known if there is one."""
        rest = self._pending.lstrip()
        if rest.startswith(self._end):
            self._pending = rest[len(self._end) :]
        elif self._end.startswith(rest):
            return False
        self._ending = False
        return True

    def _skip_blanks(self) -> None:
        """Skip what separates a call from what follows."""
        if self._behind_call:
            skipped = (_SEPARATORS if self._form.bare else _BLANKS).match(self._pending)
            self._pending = self._pending[skipped.end() if skipped else 0 :]

    def _content(self, text: str, pieces: list[Piece]) -> None:
        if text:
            pieces.append(ContentText(text))
            self._new_line, self._behind_call = text.endswith("\n"), False

    def _within_limit(self, pieces: list[Piece]) -> list[Piece]:
        limit = self._max_calls
        if limit is None:
            return pieces
        limit += self.begun - self.calls
        counted = (CallBegun, CallArguments, CallBroken)
        return [one for one in pieces if not isinstance(one, counted) or one.index < limit]


@lru_cache
def _patterns(form: ToolForm) -> tuple[tuple[re.Pattern[str], re.Pattern[str]], re.Pattern[str]]:
    """Return what begins a value, in a line and on a new one, and what may become its beginning.

    Blanks before it belong to it.
    """
    marks = "|".join(re.escape(before) for before, _ in form.marks) or "(?!)"
    bare = r"[ \t]*(?=[\[{])" if form.bare else "(?!)"
    begins = (
        re.compile(rf"\s*(?:(?P<mark>{marks})|(?<=\n){bare})"),
        re.compile(rf"\s*(?:(?P<mark>{marks})|(?:(?<=\n)|\A){bare})"),
    )
    return begins, re.compile(rf"\s*(?:{'|'.join(map(_prefixes, form.marks)) or ''})\Z")


def _prefixes(pair: tuple[str, str]) -> str:
    """Return a pattern of all beginnings of a mark that are not all of it."""
    pattern = ""
    for character in reversed(pair[0][:-1]):
        pattern = f"(?:{re.escape(character)}{pattern})?"
    return pattern
