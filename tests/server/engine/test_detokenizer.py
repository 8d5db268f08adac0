"""Streamed text equals the text decoded at once, and nothing of a stop string gets out."""

import random

import pytest

from server.engine.detokenizer import Detokenizer, StopRules
from tests.support.driving import TOKENIZER
from tests.support.tiny import sentencepiece_tokenizer

SENTENCEPIECE = sentencepiece_tokenizer()
BOTH = {"bytes": TOKENIZER, "sentencepiece": SENTENCEPIECE}

TEXTS = [
    "the quick brown fox",
    "naïve café – 東京 🙂👩‍👩‍👧 done",
    "a\n\n  indented\tline",
    "🙂" * 5,
]


def stream(tokens, stop=()):
    text = Detokenizer(TOKENIZER, StopRules(tuple(stop)))
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
    text = Detokenizer(TOKENIZER, StopRules(("STOP",), include_in_output=True))
    out = ""
    for token in TOKENIZER.encode("go STOP on"):
        if text.stopped_by is None:
            out += text.push(token)
    assert out + text.finish() == "go STOP"


def answered(tokenizer, prompt, tokens, stop=(), min_tokens=0):
    """The text of an answer to a prompt, its pieces, and what stopped it."""
    text = Detokenizer(tokenizer, StopRules(tuple(stop)), prompt, min_tokens)
    pieces = []
    for token in tokens:
        pieces.append(text.push(token))
        if text.stopped_by is not None:
            break
    return "".join([*pieces, text.finish()]), pieces, text.stopped_by


def test_the_first_space_of_an_answer_is_kept():
    prompt = SENTENCEPIECE.encode("the capital of France is")
    answer = SENTENCEPIECE.encode("Paris")
    assert SENTENCEPIECE.decode(answer) == "Paris", "decoded alone, it is lost"
    assert answered(SENTENCEPIECE, prompt, answer)[0] == " Paris"
    assert answered(SENTENCEPIECE, prompt, answer, [" Pa"])[::2] == ("", " Pa")
    assert answered(SENTENCEPIECE, [1], answer)[0] == "Paris", "behind a BOS alone there is none"


@pytest.mark.parametrize("name", BOTH)
def test_an_answer_is_what_its_tokens_add_to_the_decoded_prompt(name):
    tokenizer, chance = BOTH[name], random.Random(5)
    for text in [*TEXTS, "the capital of France is Paris of the 東京 is 🙂🙂 é"]:
        whole = tokenizer.encode(text)
        for _ in range(12):
            cut = chance.randrange(len(whole) + 1)
            prompt = tokenizer.decode(whole[:cut], skip_special_tokens=True)
            expected = tokenizer.decode(whole, skip_special_tokens=True)
            if prompt.endswith("\ufffd"):  # in mid-character: it comes as a whole
                prompt = text[: len(tokenizer.decode(whole[:cut]).rstrip("\ufffd"))]
            found, pieces, _ = answered(tokenizer, whole[:cut], whole[cut:])
            assert prompt + found == expected, (text, cut)
            assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("name", BOTH)
def test_special_tokens_before_and_in_an_answer_add_nothing(name):
    tokenizer = BOTH[name]
    special = tokenizer.convert_tokens_to_ids("<|assistant|>")
    prompt = [*tokenizer.encode("the capital of"), special]
    answer = tokenizer.encode("Paris is the")
    plain = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    expected = plain[len(tokenizer.decode(prompt, skip_special_tokens=True)) :]
    assert answered(tokenizer, prompt, answer)[0] == expected
    mixed = [part for token in answer for part in (token, special, special)]
    assert answered(tokenizer, prompt, mixed)[0] == expected


@pytest.mark.parametrize("length", [1, 3, 4, 9, 40])
def test_bytes_that_are_no_text_do_not_hide_a_character_behind_them(length):
    garbage = [TOKENIZER.convert_tokens_to_ids("\u0122")] * length  # byte 0x80
    assert TOKENIZER.decode(garbage) == "\ufffd" * length
    for text in ("🙂", "é ok"):
        tokens = [*TOKENIZER.encode("a"), *garbage, *TOKENIZER.encode(text)]
        found, pieces, _ = answered(TOKENIZER, TOKENIZER.encode("the"), tokens)
        assert found == "a" + "\ufffd" * length + text
        assert "".join(pieces) == found, "nothing of it is held back until the end"


def test_a_stop_string_counts_only_behind_the_first_tokens():
    tokens = TOKENIZER.encode("abc abc abc")
    ends = [len(TOKENIZER.decode(tokens[: n + 1])) for n in range(len(tokens))]
    for least in range(len(tokens)):
        found, _, by = answered(TOKENIZER, [], tokens, ["abc", "bc a"], least)
        written = 0 if least == 0 else ends[least - 1]
        stops = [
            (at, s) for s in ("abc", "bc a") for at in range(11) if "abc abc abc"[at:].startswith(s)
        ]
        counted = sorted((at, s) for at, s in stops if at + len(s) > written)
        assert (found, by) == (
            ("abc abc abc"[: counted[0][0]], counted[0][1]) if counted else ("abc abc abc", None)
        )


@pytest.mark.parametrize("tokenizer", BOTH.values(), ids=BOTH)
def test_the_special_tokens_that_are_shown_belong_to_the_text(tokenizer):
    user, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|assistant|>"])
    words = tokenizer.encode("is the", add_special_tokens=False)
    text = Detokenizer(tokenizer, StopRules(shown=frozenset({user})))
    pieces = [text.push(token) for token in (user, *words, assistant, user)]
    written = "".join(pieces) + text.finish()
    assert written.replace(" ", "") == "<|user|>isthe<|user|>"
    hidden = Detokenizer(tokenizer, StopRules())
    assert "<|" not in "".join(hidden.push(token) for token in (user, *words, assistant))
