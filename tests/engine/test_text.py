"""Streamed text equals the text decoded at once, and nothing of a stop string gets out."""

import random

import pytest

from server.engine.text import StopRules, TextStream
from tests.engine.driving import TOKENIZER

TEXTS = [
    "the quick brown fox",
    "naïve café – 東京 🙂👩‍👩‍👧 done",
    "a\n\n  indented\tline",
    "🙂" * 5,
]


def stream(tokens, stop=()):
    text = TextStream(TOKENIZER, StopRules(tuple(stop)))
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped_by is not None:
            break
    pieces.append(text.finish())
    return pieces, text.stopped_by


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_whole_and_hold_no_broken_characters(text):
    pieces, _ = stream(TOKENIZER.encode(text))
    assert "".join(pieces) == text
    assert not any("�" in piece for piece in pieces)


def test_an_answer_that_ends_in_half_a_character_is_not_lost():
    tokens = TOKENIZER.encode("ok 🙂")[:-1]
    assert "".join(stream(tokens)[0]) == TOKENIZER.decode(tokens)


def test_random_stop_strings_cut_where_a_search_would():
    chance = random.Random(3)
    text = "abcabcabd abcabd xyz the end abab"
    tokens = TOKENIZER.encode(text)
    for _ in range(200):
        start = chance.randrange(len(text))
        stops = [text[start : start + chance.randint(1, 5)], "zzz", "abx"]
        pieces, by = stream(tokens, stops)
        cut = min(text.find(s) for s in stops if s in text)
        assert "".join(pieces) == text[:cut]
        assert by in stops


def test_what_only_looked_like_a_stop_string_comes_out():
    pieces, by = stream(TOKENIZER.encode("say abcabx"), ["abcabc"])
    assert "".join(pieces) == "say abcabx"
    assert by is None


def test_the_stop_string_can_be_kept():
    text = TextStream(TOKENIZER, StopRules(("STOP",), include_in_output=True))
    out = ""
    for token in TOKENIZER.encode("go STOP on"):
        if text.stopped_by is None:
            out += text.push(token)
    assert out + text.finish() == "go STOP"
