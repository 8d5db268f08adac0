"""Text becomes the tokens that `transformers` gives; what cannot fit or be embedded is refused."""

import threading
import time

import pytest
from tokenizers import AddedToken, normalizers
from transformers import AutoTokenizer

from server.api.errors import ApiError
from server.api.prompt.encoder import PromptEncoder
from server.engine.loading.checkpoint import description_folder
from tests.support.tiny import tiny_tokenizer
from tests.support.tokenizers import TEXTS, sentencepiece, with_affixes


def encoder_of(tokenizer, vocab=None, context_tokens=512):
    return PromptEncoder(tokenizer, vocab or len(tokenizer), context_tokens)


@pytest.mark.parametrize(
    "tokenizer",
    [tiny_tokenizer(), with_affixes(["<s>"], []), with_affixes(["<s>", "<|user|>"], ["<|end|>"]),
     sentencepiece(), sentencepiece(normalizers.NFKC())],
)  # fmt: skip
@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith("<s>")])
def test_tokens_are_those_of_transformers(tokenizer, special, text):
    tokens = encoder_of(tokenizer).encode(text, special)
    assert tokens == tokenizer.encode(text, add_special_tokens=special)


def test_tokens_of_the_default_model_are_those_of_transformers(default_model):
    tokenizer = AutoTokenizer.from_pretrained(description_folder(default_model))
    encoder = encoder_of(tokenizer)
    assert encoder.bound is not None
    assert [encoder.encode(t, True) for t in TEXTS] == [tokenizer.encode(t) for t in TEXTS]


def test_a_text_that_begins_with_bos_gets_no_second_one():
    tokenizer = with_affixes(["<s>"], [])
    bos = tokenizer.bos_token_id
    assert tokenizer.encode("<s>the")[:2] == [bos, bos], "as `transformers` does"
    encoder = encoder_of(tokenizer)
    counts = {
        (text, special): encoder.encode(text, special).count(bos)
        for text in ("<s>the", "the")
        for special in (True, False)
    }
    assert counts == {
        ("<s>the", True): 1, ("<s>the", False): 1, ("the", True): 1, ("the", False): 0,
    }  # fmt: skip


def test_bos_in_plain_text_does_not_count_as_bos():
    tokenizer = with_affixes(["<s>"], [])
    encoder = encoder_of(tokenizer)
    tokens = encoder.encode(encoder.mark("<s>the"), True)
    assert tokens[0] == tokenizer.bos_token_id
    assert tokens.count(tokenizer.bos_token_id) == 1


def test_a_text_that_cannot_fit_is_refused_before_it_is_tokenised(monkeypatch):
    encoder = encoder_of(tiny_tokenizer(), context_tokens=64)
    monkeypatch.setattr(encoder, "_ids", lambda text: pytest.fail("tokenised"))
    with pytest.raises(ApiError, match="at least") as raised:
        encoder.encode("x" * 4_000_000, True)
    assert (raised.value.status, raised.value.code) == (400, "context_length_exceeded")


def test_the_gil_is_free_while_a_long_text_is_tokenised():
    encoder = encoder_of(tiny_tokenizer(), context_tokens=10**9)
    thread = threading.Thread(target=encoder.encode, args=("fox " * 200_000, True))
    thread.start()
    ticks = 0
    while thread.is_alive():
        time.sleep(0.001)
        ticks += 1
    assert ticks >= 5


def test_a_token_without_an_embedding_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|extra|>", special=True)])
    extra = tokenizer.convert_tokens_to_ids("<|extra|>")
    encoder = encoder_of(tokenizer, vocab=extra)
    with pytest.raises(ApiError, match=rf"no token {extra} \('<\|extra\|>'\)") as raised:
        encoder.encode("the <|extra|> fox", True)
    assert raised.value.status == 400
    with pytest.raises(ApiError, match="no token 2147483647"):
        encoder.check([1, 2**31 - 1])


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), sentencepiece()])
@pytest.mark.parametrize("text", [*TEXTS, "the<s> the", "<|end|><|user|>"])
def test_marked_text_has_no_control_tokens(tokenizer, text):
    encoder = encoder_of(tokenizer)
    added = tokenizer.get_added_vocab()
    tokens = encoder.encode(encoder.mark(text), False)
    assert not set(tokenizer.added_tokens_decoder) & set(tokens)
    if not any(name in text for name in added):
        assert tokens == encoder.encode(text, False), "ordinary text is encoded as usual"
    elif "<|end|>" in added:
        assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), sentencepiece()])
def test_marks_in_a_users_text_are_removed(tokenizer):
    encoder = encoder_of(tokenizer)
    forged = encoder.mark("\U000f0000<s>\U000f0001")
    assert not set(tokenizer.added_tokens_decoder) & set(encoder.encode(forged, False))
