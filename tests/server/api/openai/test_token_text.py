"""Bytes, texts and offsets of tokens, against those that the `tokenizers` library reports."""

import itertools
import math
import random

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from server.api.openai.completion_logprobs import CompletionLogprobs
from server.api.openai.token_text import TextOffsets, TokenText, shown
from server.engine.sequence import TokenLogprob
from tests.support.tiny import tiny_tokenizer


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer like SentencePiece's: `▁` for spaces, bytes for unknown characters."""
    pairs = ["▁ t", "t h", "▁ th", "▁th e", "▁ f", "o x", "▁f ox", "o w", "▁ ▁"]
    merges = [tuple(pair.split()) for pair in pairs]
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz", *("".join(pair) for pair in merges)]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocab = {name: at for at, name in enumerate(dict.fromkeys(names))}
    merges = [pair for pair in merges if all(part in vocab for part in pair)]
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


BYTES, PIECES = tiny_tokenizer(), piece_tokenizer()
TEXTS = ["the quick fox", "naïve café – 東京 🙂👩‍👩‍👧 done", "a  \u2028b\u0085\n", "🙂" * 5, "é"]
BOTH = pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["byte-level", "pieces"])


def scores_of(tokens):
    return [TokenLogprob(token, -1.0, ((token, -1.0),), 1, 1) for token in tokens]


def logprobs_of_answer(tokenizer, tokens):
    scores = CompletionLogprobs(TokenText(tokenizer))
    for score in scores_of(tokens):
        scores.add_written(score)
    return scores


@BOTH
@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_of_a_prompt_make_up_its_text_and_have_the_tokenizers_offsets(tokenizer, text):
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    tokens = encoded["input_ids"]
    scores = CompletionLogprobs(TokenText(tokenizer))
    scores.add_prompt(tokens, scores_of(tokens[1:]))
    found = scores.take(len(text), ended=True)
    assert b"".join(TokenText(tokenizer).prompt(tokens)) == text.encode()
    assert found["text_offset"] == [start for start, _ in encoded["offset_mapping"]]
    assert found["token_logprobs"] == [None, *[-1.0] * (len(tokens) - 1)]
    assert found["top_logprobs"][0] is None
    for name, data in zip(found["tokens"], TokenText(tokenizer).prompt(tokens), strict=True):
        if name.startswith("bytes:"):
            assert bytes.fromhex(name.removeprefix("bytes:").replace("\\x", "")) == data
        else:
            assert name.encode() == data


@BOTH
def test_special_tokens_are_part_of_a_prompt_and_not_of_an_answer(tokenizer):
    text = TokenText(tokenizer)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    words = tokenizer.encode("the fox", add_special_tokens=False)
    prompt = b"".join(text.prompt([start, *words, end])).decode()
    assert prompt == tokenizer.decode([start, *words, end], skip_special_tokens=False)
    assert prompt.startswith("<s>")
    found = logprobs_of_answer(tokenizer, [words[0], end, words[1]]).take(99, ended=True)
    first = len(text.data(words[0]))
    assert found["text_offset"] == [0, first, first]
    assert found["tokens"][1] == tokenizer.eos_token


def test_an_answers_first_token_keeps_its_space_and_a_prompts_does_not():
    token = PIECES.convert_tokens_to_ids("▁fox")
    assert TokenText(PIECES).data(token) == b" fox"
    assert TokenText(PIECES).prompt([token, token]) == [b"fox", b" fox"]
    assert PIECES.decode([token, token]) == "fox fox"


@BOTH
def test_a_part_of_a_character_is_shown_by_its_bytes(tokenizer):
    text = TokenText(tokenizer)
    parts = [t for t in tokenizer.encode("€", add_special_tokens=False) if text.data(t).strip()]
    assert [text.data(token) for token in parts] == [b"\xe2", b"\x82", b"\xac"]
    assert [text.shown(token) for token in parts] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    found = logprobs_of_answer(tokenizer, [*parts, *parts]).take(2, ended=True)
    assert found["text_offset"] == [0, 0, 0, 1, 1, 1]
    assert shown("ok €".encode()[:-1]) == "bytes:\\x6f\\x6b\\x20\\xe2\\x82"


@BOTH
def test_unknown_ids_have_no_text(tokenizer):
    assert TokenText(tokenizer).data(len(tokenizer) + 7) == b""
    assert TokenText(tokenizer).shown(len(tokenizer) + 7) == ""


def test_offsets_equal_those_counted_from_the_start():
    """Random bytes in random parts: an offset is the character of a part's first byte."""
    rng = random.Random(5)
    alphabet = [b"a", b"\xe2", b"\x82", b"\xac", b"\xf0", b"\x9f", b"\x99", b"\xff", b"\xc3"]
    for _ in range(2000):
        parts = [b"".join(rng.choices(alphabet, k=rng.randint(1, 3))) for _ in range(8)]
        offsets, done = TextOffsets(), b""
        for part in parts:
            upto = (done + part[:1]).decode(errors="replace")
            assert offsets.next(part) == len(upto) - 1
            done += part


def test_a_metaspace_decoder_is_supported():
    names = {"<unk>": 0, "▁a": 1, "b": 2, "<0x41>": 3}
    backend = Tokenizer(models.Unigram([(name, -1.0) for name in names], unk_id=0))
    backend.decoder = decoders.Metaspace()
    text = TokenText(PreTrainedTokenizerFast(tokenizer_object=backend))
    assert [text.data(token) for token in (1, 2, 3)] == [b" a", b"b", b"<0x41>"]
    assert b"".join(text.prompt([1, 2, 1])).decode() == backend.decode([1, 2, 1]) == "ab a"


def test_the_parts_of_a_stream_join_to_the_whole():
    """Every token comes once, with the same offset, however late its text is sent."""
    rng = random.Random(2)
    tokens = BYTES.encode("naïve – 東京 🙂 the fox", add_special_tokens=False)
    text = BYTES.decode(tokens)
    whole = logprobs_of_answer(BYTES, tokens).take(len(text), ended=True)
    for _ in range(50):
        scores, parts, out = CompletionLogprobs(TokenText(BYTES)), [], 0
        for at, score in enumerate(scores_of(tokens)):
            scores.add_written(score)
            sure = len(BYTES.decode(tokens[: at + 1]).rstrip("�"))
            out = rng.randint(out, max(out, sure))
            parts.append(scores.take(out, ended=False))
        parts.append(scores.take(len(text), ended=True))
        given = [part for part in parts if part is not None]
        joined = {name: list(itertools.chain(*(part[name] for part in given))) for name in whole}
        assert joined == whole


def test_tokens_cut_off_by_a_stop_string_have_the_offset_of_the_texts_end():
    tokens = BYTES.encode("ab🙂", add_special_tokens=False)
    found = logprobs_of_answer(BYTES, tokens).take(1, ended=True)
    assert found["text_offset"] == [0, *[1] * (len(tokens) - 1)]


def test_impossible_tokens_are_finite_in_json():
    scores = CompletionLogprobs(TokenText(BYTES))
    scores.add_written(TokenLogprob(5, -math.inf, ((5, -math.inf),), 1, 9))
    found = scores.take(9, ended=True)
    assert found["token_logprobs"] == [-9999.0]
