"""Follows JSON as its characters come: whether it is still valid, and how deep it is nested."""

import json
import re
from enum import Enum, auto

_MAX_DEPTH = 64
_BLANKS = " \t\n\r"
_LITERALS = ("true", "false", "null")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_NUMBER_CHARACTERS = frozenset("+-.eE0123456789")
_HEX = frozenset("0123456789abcdefABCDEF")


class JsonError(ValueError):
    """What came is no JSON."""


class _Expected(Enum):
    """What may come next."""

    VALUE = auto()
    FIRST_ENTRY = auto()  # a value or the end of a list
    FIRST_KEY = auto()  # a key or the end of an object
    KEY = auto()
    COLON = auto()
    COMMA = auto()  # or the end of the list or object
    STRING = auto()  # the rest of one
    ESCAPE = auto()  # what stands behind a backslash
    HEX = auto()  # the rest of \uXXXX
    SCALAR = auto()  # the rest of a number or a literal
    NOTHING = auto()


class JsonScanner:
    """One object or list of JSON, character by character.

    `depth` is the number of objects and lists that are open; `ended` says that the value is whole.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._expected = _Expected.VALUE
        self._key = False  # whether the string is a key
        self._part = ""  # of a scalar, or of the digits of an escape

    @property
    def depth(self) -> int:
        """The number of objects and lists that are open."""
        return len(self._open)

    @property
    def ended(self) -> bool:
        """Whether the value is whole."""
        return self._expected is _Expected.NOTHING

    def push(self, character: str) -> str:
        """Take the next character; return it as JSON has it. Raise `JsonError`.

        Models write line breaks and tabs into strings as they are; these are escaped.
        """
        match self._expected:
            case _Expected.STRING:
                return self._in_string(character)
            case _Expected.ESCAPE:
                self._in_escape(character)
            case _Expected.HEX:
                self._in_hex(character)
            case _Expected.SCALAR if character in _NUMBER_CHARACTERS or character.isalpha():
                self._part += character
                self._check_literal()
            case _Expected.NOTHING:
                raise JsonError("the value has ended")
            case _:
                self._between(character)
        return character

    def _in_string(self, character: str) -> str:
        if character == '"':
            self._expected = _Expected.COLON if self._key else _Expected.COMMA
        elif character == "\\":
            self._expected = _Expected.ESCAPE
        elif character < " ":
            return json.dumps(character)[1:-1]
        return character

    def _in_escape(self, character: str) -> None:
        if character == "u":
            self._expected, self._part = _Expected.HEX, ""
        elif character in '"\\/bfnrt':
            self._expected = _Expected.STRING
        else:
            raise JsonError(f"no escape \\{character}")

    def _in_hex(self, character: str) -> None:
        if character not in _HEX:
            raise JsonError("a \\u needs four hexadecimal digits")
        self._part += character
        if len(self._part) == 4:
            self._expected = _Expected.STRING

    def _check_literal(self) -> None:
        """Raise `JsonError` if a scalar is no number and begins no literal."""
        part = self._part
        if part[0].isalpha() and not any(one.startswith(part) for one in _LITERALS):
            raise JsonError(f"'{part}' is no value")

    def _end_scalar(self) -> None:
        if self._part not in _LITERALS and not _NUMBER.fullmatch(self._part):
            raise JsonError(f"'{self._part}' is no value")
        self._expected = _Expected.COMMA

    def _between(self, character: str) -> None:
        """Take a character outside of strings, which ends a scalar if there is one."""
        if self._expected is _Expected.SCALAR:
            self._end_scalar()
        if character in _BLANKS:
            return
        match self._expected:
            case _Expected.COLON:
                self._require(character == ":", character)
                self._expected = _Expected.VALUE
            case _Expected.COMMA:
                self._after_value(character)
            case _Expected.FIRST_KEY if character == "}":
                self._close()
            case _Expected.FIRST_KEY | _Expected.KEY:
                self._require(character == '"', character)
                self._expected, self._key = _Expected.STRING, True
            case _Expected.FIRST_ENTRY if character == "]":
                self._close()
            case _:
                self._begin_value(character)

    def _after_value(self, character: str) -> None:
        opened = self._open[-1]
        if character == ",":
            self._expected = _Expected.KEY if opened == "{" else _Expected.VALUE
        else:
            self._require(character == {"{": "}", "[": "]"}[opened], character)
            self._close()

    def _begin_value(self, character: str) -> None:
        if character in "{[":
            self._open.append(character)
            if self.depth > _MAX_DEPTH:
                raise JsonError("it is nested too deep")
            self._expected = _Expected.FIRST_KEY if character == "{" else _Expected.FIRST_ENTRY
            return
        self._require(bool(self._open), character)
        if character == '"':
            self._expected, self._key = _Expected.STRING, False
        else:
            self._require(character == "-" or character.isalnum(), character)
            self._expected, self._part = _Expected.SCALAR, character
            self._check_literal()

    def _close(self) -> None:
        self._open.pop()
        self._expected = _Expected.COMMA if self._open else _Expected.NOTHING

    @staticmethod
    def _require(condition: bool, character: str) -> None:
        if not condition:
            raise JsonError(f"'{character}' does not fit here")
