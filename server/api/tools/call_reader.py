"""Reads tool calls from JSON as its characters come: an object for each, or a list of these."""

import json
import re
from collections.abc import Collection, Iterator
from enum import Enum, auto

from server.api.tools.json_scanner import JsonError, JsonScanner
from server.api.tools.pieces import CallArguments, CallBegun, Piece

_MAX_NAME = 256  # characters before the arguments of a call that is not an object
_CALL_KEYS = {"name", "function", "arguments", "parameters", "type", "id"}
_WRAPPERS = ("tool_calls", "tool_call", "function_call", "function")
# A call whose arguments can be passed on as they come: its name stands before them.
_HEAD = re.compile(
    r'\{\s*(?:"(?:type|id)"\s*:\s*"[^"\\]*"\s*,\s*)*"name"\s*:\s*"([^"\\]+)"\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*\{'
)
_FIRST_KEY = re.compile(r'\{\s*"(\w+)"\s*:')
_IN_NAME = re.compile(r"[\w.\[\]\s-]")
_NAME_BEFORE = re.compile(r"([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\]\s*)?")


class _Phase(Enum):
    """Where a reader is."""

    BEFORE = auto()  # the value has not begun
    NAME = auto()  # in a name that stands before its arguments
    OBJECT = auto()
    BETWEEN = auto()  # behind an object of a list
    NEXT = auto()  # behind a comma of the list
    ENDED = auto()
    FAILED = auto()


class _ObjectReader:
    """One object, which is a call of one of the tools `names`, or holds such calls.

    `whole` says that nothing is missing of its calls, even if the object itself has not ended.
    `index` is the number of its first call, `calls` how many it has.
    """

    def __init__(self, names: Collection[str], index: int) -> None:
        self._names = names
        self.index = index
        self.calls = 0
        self.whole = False
        self._scanner = JsonScanner()
        self._head = ""
        self._unsent = ""  # arguments

    @property
    def ended(self) -> bool:
        """Whether the object is whole."""
        return self._scanner.ended

    @property
    def begun(self) -> bool:
        """Whether a call has begun."""
        return self.calls > 0

    @classmethod
    def of_arguments(cls, names: Collection[str], index: int, name: str) -> "_ObjectReader":
        """Return a reader of the arguments of a call whose name was read. Raise `JsonError`."""
        reader = cls(names, index)
        for character in f'{{"name":{json.dumps(name)},"arguments":':
            reader.push(character)
        return reader

    def push(self, character: str) -> list[Piece]:
        """Take the next character. Raise `JsonError` if this is no call, or no JSON."""
        depth = self._scanner.depth
        taken = self._scanner.push(character)
        if self.begun:
            if not self.whole:
                self._unsent += taken
                self.whole = self._scanner.depth == 1
            return []
        self._head += taken
        if character == ":" and depth == 1:
            self._check_first_key()
        if depth == 1 and self._scanner.depth == 2 and (head := _HEAD.fullmatch(self._head)):
            return [self._begin(head[1])]
        return list(self._calls_at_end()) if self.ended else []

    def flush(self) -> list[Piece]:
        """Return the arguments that came since the last time."""
        text, self._unsent = self._unsent, ""
        return [CallArguments(self.index, text)] if text else []

    def _begin(self, name: str) -> CallBegun:
        if name not in self._names:
            raise JsonError(f"no tool '{name}'")
        self.calls, self._unsent = 1, "{"
        return CallBegun(self.index, name)

    def _check_first_key(self) -> None:
        """Raise `JsonError` as soon as an object begins as no call does."""
        key = _FIRST_KEY.match(self._head)
        if key is None or key[1] not in (*_CALL_KEYS, *_WRAPPERS):
            raise JsonError("this is no call")

    def _calls_at_end(self) -> Iterator[Piece]:
        """Yield the calls of an object that has ended."""
        calls = _calls_of(json.loads(self._head), self._names)
        self.calls, self.whole = len(calls), True
        for index, (name, arguments) in enumerate(calls, self.index):
            yield CallBegun(index, name)
            yield CallArguments(index, arguments)


class CallReader:
    """One JSON value of calls: `names` are the tools, `first` is the number of its first call.

    With `named` a call may also be `name[ARGS]{...}`, as Mistral's models write it. `raw` is the
    text since the last whole call, `calls` the number of whole calls.
    """

    def __init__(self, names: Collection[str], first: int, named: bool = False) -> None:
        self._names = names
        self._first = first
        self._named = named
        self._phase = _Phase.BEFORE
        self._in_list = False
        self._object: _ObjectReader | None = None
        self._name = ""
        self.calls = 0
        self.raw = ""

    @property
    def ended(self) -> bool:
        """Whether the value has ended, and all of its calls are whole."""
        return self._phase is _Phase.ENDED

    @property
    def failed(self) -> bool:
        """Whether this is no call, or broken JSON."""
        return self._phase is _Phase.FAILED

    @property
    def broken(self) -> int | None:
        """The number of the call that had begun when it failed."""
        begun = self._object is not None and self._object.begun and self.failed
        return self._first + self.calls if begun else None

    def push(self, text: str) -> tuple[list[Piece], str]:
        """Return the pieces of a text, and what of it is behind the value, or does not fit it."""
        pieces: list[Piece] = []
        for at, character in enumerate(text):
            taken = self._step(character, pieces)
            if self.ended or self.failed:
                rest = text[at + taken :]
                break
        else:
            rest = ""
        if self._object is not None:
            pieces += self._object.flush()
        return pieces, rest

    def finish(self) -> None:
        """End the value where the text ends."""
        if self._object is not None and self._object.whole:
            self._end_object(self._object)
        if self._phase in (_Phase.BETWEEN, _Phase.NEXT):
            self._phase = _Phase.ENDED
        if not self.ended:
            self._phase = _Phase.FAILED

    def _step(self, character: str, pieces: list[Piece]) -> bool:
        """Take a character if it belongs to the value; return whether it does."""
        phase = self._phase
        try:
            if phase is _Phase.OBJECT:
                assert self._object is not None
                pieces += self._object.push(character)
            elif phase is _Phase.NAME:
                pieces += self._in_name(character)
            elif not character.isspace():
                self._outside(character)
        except ValueError:
            self._leave(pieces)
            return False
        if phase is _Phase.BETWEEN and self.ended and character != "]":
            return False
        self.raw += character
        reader = self._object
        if reader is not None and reader.ended:
            pieces += reader.flush()
            self._end_object(reader)
        return True

    def _outside(self, character: str) -> None:
        """Take a character outside of objects. Raise `JsonError`."""
        phase = self._phase
        if phase is _Phase.BETWEEN:
            self._phase = _Phase.NEXT if character == "," else _Phase.ENDED
        elif character == "{":
            self._object = _ObjectReader(self._names, self._first + self.calls)
            self._object.push(character)
            self._phase = _Phase.OBJECT
        elif phase is _Phase.BEFORE and character == "[" and not self._in_list:
            self._in_list = True
        elif phase is _Phase.BEFORE and self._named and not self._in_list:
            self._phase = _Phase.NAME
            self._in_name(character)
        elif phase is _Phase.NEXT and character == "]":
            self._phase = _Phase.ENDED
        else:
            raise JsonError("this is no call")

    def _in_name(self, character: str) -> list[Piece]:
        """Take a character of a name, or the one that begins its arguments. Raise `JsonError`."""
        if character != "{":
            self._name += character
            if len(self._name) > _MAX_NAME or not _IN_NAME.match(character):
                raise JsonError("this is no call")
            return []
        name = _NAME_BEFORE.fullmatch(self._name)
        if name is None:
            raise JsonError("this is no call")
        self._object = _ObjectReader.of_arguments(self._names, self._first + self.calls, name[1])
        self._phase = _Phase.OBJECT
        return self._object.push(character)

    def _leave(self, pieces: list[Piece]) -> None:
        """End where a character does not fit: well if nothing is missing of the calls so far."""
        reader = self._object
        if reader is not None and reader.whole:
            pieces += reader.flush()
            self._end_object(reader)
            self._phase = _Phase.ENDED
        elif self._phase is _Phase.NEXT:
            self._phase = _Phase.ENDED
        else:
            self._phase = _Phase.FAILED

    def _end_object(self, reader: _ObjectReader) -> None:
        self.calls += reader.calls
        self._object, self.raw = None, ""
        self._phase = _Phase.BETWEEN if self._in_list else _Phase.ENDED


def _calls_of(value: object, names: Collection[str]) -> list[tuple[str, str]]:
    """Return the calls in a JSON value, each as a name and arguments as JSON.

    Raise `ValueError` if it is no call.
    """
    if isinstance(value, list) and value:
        return [call for entry in value for call in _calls_of(entry, names)]
    if not isinstance(value, dict):
        raise JsonError("this is no call")
    for wrapper in _WRAPPERS:
        if isinstance(value.get(wrapper), dict | list):
            return _calls_of(value[wrapper], names)
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    arguments = {} if arguments is None else arguments
    known = isinstance(name, str) and name in names and value.keys() <= _CALL_KEYS
    if not known or not isinstance(arguments, dict):
        raise JsonError("this is no call")
    return [(str(name), json.dumps(arguments, allow_nan=False))]
