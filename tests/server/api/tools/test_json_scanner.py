"""The scanner takes what Python's parser takes, and says where it ends."""

import json
import random

import pytest

from server.api.tools.json_scanner import JsonError, JsonScanner

VALUES = [
    "{}",
    "[]",
    '{"a": [1, -2.5e+3, 0, true, false, null, "x"], "b": {"c": {}}}',
    '[ [], {"\\u00e9\\n\\"": "\\ud83d\\ude00"} , "é" ]',
    '\n{ "a" :\t1 , "b":"}" }',
]
BROKEN = [
    "{,}", '{"a" 1}', '{"a": 01}', '{"a": 1.}', '{"a": .5}', '{"a": truth}', '{"a": +1}',
    "{'a': 1}", '{"a": 1,}', "[1,]", "[1 2]", "[1}", '{"a"}', '{"a": "\\x"}', '["\\u12g4"]',
    '{"a": nul}', '{"a": 1e}', "x", "1", '"x"', '{"a": --1}', '{"a": ٣}',
]  # fmt: skip


def scan(text: str) -> tuple[str, bool]:
    scanner = JsonScanner()
    taken = "".join(scanner.push(character) for character in text)
    return taken, scanner.ended


@pytest.mark.parametrize("text", VALUES)
def test_a_value_ends_at_its_last_character(text):
    assert scan(text) == (text, True)
    assert not any(scan(text[:at])[1] for at in range(len(text)))
    with pytest.raises(JsonError):
        scan(text + "x")


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(ValueError, match=r"."):
        json.loads(text[1:-1] if text in ("1", '"x"') else text)
    with pytest.raises(JsonError):
        scan(text)


def test_a_changed_character_is_refused_as_by_pythons_parser():
    rng = random.Random(0)
    for _ in range(4000):
        characters = list(rng.choice(VALUES).strip())
        characters[rng.randrange(len(characters))] = rng.choice('{}[]:,"\\ 0123e.-tfn\u00e9')
        text = "".join(characters)
        try:
            expected = isinstance(json.loads(text), dict | list)
        except ValueError:
            expected = False
        try:
            ended = scan(text)[1]
        except JsonError:
            ended = False
        assert ended == expected, text


def test_line_breaks_in_strings_are_escaped():
    taken, ended = scan('{"code": "a\n\tb\x01"}')
    assert ended
    assert json.loads(taken) == {"code": "a\n\tb\x01"}


def test_depth_is_bounded():
    with pytest.raises(JsonError, match="deep"):
        scan("[" * 1000)
