"""The lower bound on the tokens of a text, for tokenizers that have one and that do not."""

import random

import pytest
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from server.api.prompt.text_bound import text_bound
from tests.support.tiny import tiny_tokenizer
from tests.support.tokenizers import TEXTS, sentencepiece


@pytest.mark.parametrize(
    "tokenizer", [tiny_tokenizer(), sentencepiece(), sentencepiece(normalizers.NFKC())]
)
def test_no_text_has_fewer_tokens_than_the_bound(tokenizer):
    bound = text_bound(tokenizer)
    letters = "the \n\t\x00\x04é日😀ＡǺ̂ff<s><|end|>"
    rng = random.Random(0)
    texts = ["".join(rng.choices(letters, k=rng.randrange(200))) for _ in range(300)]
    for text in [*TEXTS, *texts, "the " * 50, "Ａ" * 50]:
        assert bound.min_tokens(text) <= len(tokenizer.encode(text, add_special_tokens=False))


def _tiny_with(**parts):
    tokenizer = tiny_tokenizer()
    for name, part in parts.items():
        setattr(tokenizer.backend_tokenizer, name, part)
    return tokenizer


def _tiny_with_stripping_token():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken("<|cut|>", rstrip=True, special=True)])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        _tiny_with(normalizer=normalizers.Strip()),
        _tiny_with(normalizer=normalizers.Replace(" ", "")),
        _tiny_with(pre_tokenizer=pre_tokenizers.Whitespace()),
        _tiny_with(model=models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")),
        _tiny_with_stripping_token(),
    ],
)
def test_there_is_no_bound_where_a_token_may_stand_for_any_length(tokenizer):
    assert text_bound(tokenizer) is None
