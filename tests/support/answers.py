"""Answers split into pieces, with their text cut in every way."""

import json
from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from typing import Protocol

from server.api.tools.pieces import (
    CallArguments,
    CallBegun,
    CallBroken,
    ContentText,
    Piece,
    ReasoningText,
)


class Parser(Protocol):
    def push(self, text: str) -> list[Piece]: ...

    def finish(self) -> list[Piece]: ...


def joined(pieces: list[Piece]) -> list[tuple[object, ...]]:
    """Return pieces as tuples, with those that follow each other joined."""
    found: list[tuple[object, ...]] = []
    for piece in pieces:
        match piece:
            case ContentText(text) | ReasoningText(text):
                entry = ("content" if isinstance(piece, ContentText) else "reasoning", text)
            case CallBegun(index, name):
                entry = ("call", index, name)
            case CallArguments(index, text):
                entry = ("arguments", index, text)
            case CallBroken(index, text):
                entry = ("broken", index, text)
        if found and found[-1][:-1] == entry[:-1] and entry[0] not in ("call", "broken"):
            entry = (*entry[:-1], f"{found.pop()[-1]}{entry[-1]}")
        found.append(entry)
    return found


def parse(parser: Parser, chunks: list[str]) -> list[tuple[object, ...]]:
    """Return the joined pieces of a text that comes in chunks."""
    pieces = [piece for chunk in chunks for piece in parser.push(chunk)]
    return joined(pieces + parser.finish())


def cuts(text: str) -> Iterator[list[str]]:
    """Yield a text cut once and, if it is short, twice at every place, and into its characters."""
    yield list(text)
    most = 2 if len(text) <= 40 else 1
    for count in range(1, most + 1):
        for places in combinations(range(1, len(text)), count):
            ends = (0, *places, len(text))
            yield [text[a:b] for a, b in pairwise(ends)]


def parse_every_way(make: Callable[[], Parser], text: str) -> list[tuple[object, ...]]:
    """Return the joined pieces of a text, which are the same however it is cut."""
    whole = parse(make(), [text])
    for chunks in cuts(text):
        assert parse(make(), chunks) == whole, chunks
    return whole


def calls_of(pieces: list[tuple[object, ...]]) -> list[tuple[object, object]]:
    """Return the whole calls among joined pieces: names, and arguments as values."""
    broken = {piece[1] for piece in pieces if piece[0] == "broken"}
    names = {piece[1]: piece[2] for piece in pieces if piece[0] == "call"}
    texts = {piece[1]: str(piece[2]) for piece in pieces if piece[0] == "arguments"}
    return [(names[at], json.loads(texts[at])) for at in names if at not in broken]


def text_of(pieces: list[tuple[object, ...]], kind: str = "content") -> str:
    """Return the text of joined pieces of a kind; that of broken calls is content."""
    kinds = (kind, "broken") if kind == "content" else (kind,)
    return "".join(str(piece[-1]) for piece in pieces if piece[0] in kinds)
