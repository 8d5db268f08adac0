"""Splits the text of an answer into reasoning and what follows, as it comes."""

from enum import Enum, auto

from server.api.tools.pieces import ContentText, Piece, ReasoningText
from server.api.tools.reasoning_form import ReasoningForm


class _Place(Enum):
    """Where in the answer the text is."""

    BEFORE = auto()
    INSIDE = auto()
    BEHIND = auto()  # where blanks and the beginning of the frame are skipped
    FRAME = auto()  # inside of the frame
    CONTENT = auto()


class ReasoningParser:
    """The parser of one answer; `inside` says that the prompt ends with the beginning of reasoning.

    Blanks at both ends of the reasoning are left out, and so are those behind it. An answer
    without reasoning is passed on as it is.
    """

    def __init__(self, form: ReasoningForm, inside: bool) -> None:
        self._form = form
        self._place = _Place.INSIDE if inside else _Place.BEFORE
        self._pending = ""
        self._silent = True  # there is no reasoning yet

    def push(self, text: str) -> list[Piece]:
        """Return what a further text of the answer adds."""
        self._pending += text
        pieces: list[Piece] = []
        while self._advance(pieces):
            pass
        return pieces

    def finish(self) -> list[Piece]:
        """Return what is left when the answer ends."""
        rest, self._pending = self._pending, ""
        if self._place is _Place.INSIDE:
            return _reasoning(rest.lstrip() if self._silent else rest)
        return _content("" if self._place is _Place.BEHIND and not rest.strip() else rest)

    def _advance(self, pieces: list[Piece]) -> bool:
        """Take a step; return whether there may be another one with the text so far."""
        match self._place:
            case _Place.BEFORE:
                return self._skip(self._form.begin, _Place.INSIDE, _Place.CONTENT)
            case _Place.INSIDE:
                return self._inside(pieces)
            case _Place.BEHIND:
                return self._behind()
            case _Place.FRAME:
                return self._framed(pieces)
            case _Place.CONTENT:
                pieces += _content(self._pending)
                self._pending = ""
                return False

    def _skip(self, mark: str, found: _Place, other: _Place) -> bool:
        """Skip blanks and a mark, if these come next; return whether that is known."""
        rest = self._pending.lstrip()
        if rest.startswith(mark):
            self._pending, self._place = rest[len(mark) :], found
        elif mark.startswith(rest):
            return False
        else:
            self._place = other
        return True

    def _inside(self, pieces: list[Piece]) -> bool:
        if self._silent:
            self._pending = self._pending.lstrip()
        text, found, rest = self._pending.partition(self._form.end)
        if not found:
            kept = _unfinished(text, self._form.end)
            text, rest = text[: len(text) - kept], text[len(text) - kept :]
        blanks = len(text) - len(text.rstrip())
        if not found and blanks:
            text, rest = text[:-blanks], text[-blanks:] + rest
        pieces += _reasoning(text.rstrip())
        self._silent = self._silent and not text.strip()
        self._pending = rest
        if found:
            self._place = _Place.BEHIND
        return bool(found)

    def _behind(self) -> bool:
        frame = self._form.frame
        if frame is not None and not self._skip(frame[0], _Place.FRAME, _Place.CONTENT):
            return False
        if self._place is _Place.FRAME:
            return True
        self._pending = self._pending.lstrip()
        if self._pending:
            self._place = _Place.CONTENT
        return bool(self._pending)

    def _framed(self, pieces: list[Piece]) -> bool:
        """Pass the text inside of the frame on, up to its end."""
        assert self._form.frame is not None
        text, found, rest = self._pending.partition(self._form.frame[1])
        if not found:
            kept = _unfinished(text, self._form.frame[1])
            text, rest = text[: len(text) - kept], text[len(text) - kept :]
        pieces += _content(text)
        self._pending = rest
        if found:
            self._place = _Place.CONTENT
        return bool(found)


def _unfinished(text: str, mark: str) -> int:
    """Return the length of the longest end of `text` that begins `mark`."""
    sizes = range(min(len(text), len(mark) - 1), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)


def _content(text: str) -> list[Piece]:
    return [ContentText(text)] if text else []


def _reasoning(text: str) -> list[Piece]:
    return [ReasoningText(text)] if text else []
