"""Tokenizers built from a GGUF file's metadata: text is split and merged as llama.cpp does."""

from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.parts import open_gguf
from server.engine.loading.gguf_file.tokenizer import named_ends, tokenizer_of
from tests.support.gguf_tiny import write_gguf
from tests.support.tiny import CHAT, VOCAB, tiny_tokenizer
from tests.support.tokenizers import TEXTS

TEXT = "I'VE 12345 Apples/pears\n\n   don't"
LLAMA3 = ["I", "'VE", " ", "123", "45", " Apples", "/pears", "\n\n", "  ", " don", "'t"]
DIGITS = ["1", "2", "3", "4", "5"]
SPLITS = {
    "llama-bpe": LLAMA3,
    "dbrx": LLAMA3,
    "qwen2": ["I", "'VE", " ", *DIGITS, *LLAMA3[5:]],
    "tekken": ["I", "'VE", " ", *DIGITS, " Apples", "/pears", "\n\n", "  ", " don", "'t"],
    "gpt-4o": ["I'VE", " ", "123", "45", " Apples", "/pears", "\n\n", "  ", " don't"],
    "gpt-2": ["I", "'", "VE", " 12345", " Apples", "/", "pears", "\n\n  ", " don", "'t"],
    "refact": ["I", "'", "VE", " ", *DIGITS, " Apples", "/", "pears", "\n\n  ", " don", "'t"],
}


def read(path: Path, **keys: object) -> PreTrainedTokenizerBase:
    general = {f"tokenizer.{name.replace('__', '.')}": value for name, value in keys.items()}
    return tokenizer_of(open_gguf(write_gguf(path / "tiny.gguf", **general)))


@pytest.mark.parametrize(("name", "pieces"), SPLITS.items())
def test_text_is_split_as_the_name_says(tmp_path: Path, name: str, pieces: list[str]):
    splitter = read(tmp_path, ggml__pre=name).backend_tokenizer.pre_tokenizer
    found = [TEXT[start:end] for _, (start, end) in splitter.pre_tokenize_str(TEXT)]
    assert found == pieces


@pytest.mark.parametrize("text", TEXTS)
def test_text_becomes_the_same_tokens(tmp_path: Path, text: str):
    found, wanted = read(tmp_path), tiny_tokenizer()
    ids = found.encode(text, add_special_tokens=False)
    assert ids == wanted.encode(text, add_special_tokens=False)
    assert found.decode(ids) == wanted.decode(ids)
    assert found.chat_template == CHAT


def test_a_piece_that_is_a_token_is_kept_whole_only_by_some(tmp_path: Path):
    tokens = [*sorted(tiny_tokenizer().get_vocab(), key=tiny_tokenizer().get_vocab().get)]
    tokens[-1] = "zzz"  # no merge leads there
    for name, count in (("llama-bpe", 1), ("dbrx", 3)):
        tokenizer = read(
            tmp_path, ggml__pre=name, ggml__tokens=tokens, ggml__merges=["h e"],
            ggml__add_bos_token=False,
        )  # fmt: skip
        assert len(tokenizer.encode("zzz")) == count


@pytest.mark.parametrize(
    ("keys", "begins", "ends"),
    [
        ({"ggml__pre": "gpt-2"}, False, False),
        ({"ggml__pre": "llama-bpe"}, True, False),
        ({"ggml__pre": "llama-bpe", "ggml__add_bos_token": False}, False, False),
        ({"ggml__pre": "gpt-2", "ggml__add_bos_token": True}, True, False),
        ({"ggml__add_eos_token": True}, False, True),
    ],
)
def test_a_text_begins_and_ends_as_the_file_says(
    tmp_path: Path, keys: dict[str, Any], begins: bool, ends: bool
):
    ids = read(tmp_path, **keys).encode("the fox")
    assert ids[0] == 0 if begins else ids[0] != 0
    assert ids[-1] == 1 if ends else ids[-1] != 1


def test_added_tokens_are_found_first(tmp_path: Path):
    kinds = [3, 3, 4, 3, 3, *[1] * (len(tiny_tokenizer()) - 5)]
    tokenizer = read(tmp_path, ggml__token_type=kinds)
    ids = tokenizer.encode("<|user|> <|end|>")
    assert (ids[0], ids[-1]) == (2, 1)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<|user|> "
    assert named_ends(tokenizer) == [1]


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"chat_template": None}, None),
        ({"chat_template": "a", "chat_template.tool_use": "b"}, "a"),
        ({"chat_template": None, "chat_template.default": "c"}, "c"),
        ({"chat_template": None, "chat_template.tool_use": "b"}, None),
    ],
)
def test_the_template_of_chats_is_read(tmp_path: Path, keys: dict[str, Any], wanted: str | None):
    assert read(tmp_path, **keys).chat_template == wanted


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"ggml__tokens": ["a", "b", "a", *map(str, range(300))]}, "the token 'a' twice"),
        ({"ggml__token_type": [1, 1]}, "token_type has 2 entries for 293 tokens"),
        ({"ggml__bos_token_id": None, "ggml__add_bos_token": True}, "bos_token_id is missing"),
        ({"ggml__merges": ["t nosuchtoken"]}, "cannot read the tokenizer of tiny.gguf"),
        ({"ggml__merges": ["t"]}, "cannot read the tokenizer of tiny.gguf"),
        ({"ggml__tokens": [f"t{i}" for i in range(VOCAB + 1)]}, "385 tokens, the model 384"),
        ({"ggml__add_space_prefix": 1}, "add_space_prefix = 1"),
        ({"ggml__tokens": None}, "tokens is missing"),
        ({"ggml__model": "llama", "ggml__pre": "default"}, "scores is missing"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, keys: dict[str, Any], named: str):
    if keys.get("ggml__tokens") is not None:
        keys = {**keys, "ggml__token_type": None}
    with pytest.raises(UnsupportedModelError, match=rf"tiny\.gguf.*{named}|{named}"):
        read(tmp_path, **keys)


SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<br>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [
    *"\u2581abcd",
    "ab",
    "bc",
    "abc",
    "cd",
    "\u2581a",
    "\u2581ab",
    "abcd",
    "\u2581\u2581",
    "dd",
]
SCORES = {piece: -float(index % 7) for index, piece in enumerate(PIECES)}
TOKENS = [*SPECIAL, *BYTES, *PIECES]


def sentencepiece_keys(**keys: object) -> dict[str, object]:
    kinds = {"<unk>": TokenType.UNKNOWN, "<br>": TokenType.USER_DEFINED}
    kinds |= dict.fromkeys(SPECIAL[1:4], TokenType.CONTROL) | dict.fromkeys(BYTES, TokenType.BYTE)
    return {
        "ggml__model": "llama",
        "ggml__pre": "default",
        "ggml__merges": None,
        "ggml__bos_token_id": None,  # 1 and 2, as llama.cpp assumes
        "ggml__eos_token_id": None,
        "ggml__tokens": TOKENS,
        "ggml__scores": [SCORES.get(token, 0.0) for token in TOKENS],
        "ggml__token_type": [int(kinds.get(token, TokenType.NORMAL)) for token in TOKENS],
        **keys,
    }


def merged(text: str) -> list[int]:
    """llama.cpp's way: merge the best scored neighbours, then spell what is left in bytes."""
    symbols = list(text.replace(" ", "\u2581"))
    while True:
        pairs = [a + b for a, b in pairwise(symbols)]
        known = [(-SCORES[pair], at) for at, pair in enumerate(pairs) if pair in SCORES]
        if not known:
            break
        at = min(known)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    ids = []
    for symbol in symbols:
        names = [symbol] if symbol in SCORES else [f"<0x{b:02X}>" for b in symbol.encode()]
        ids += [TOKENS.index(name) for name in names]
    return ids


@pytest.mark.parametrize("blank", [True, False])
def test_sentencepiece_merges_the_best_pair_first(tmp_path: Path, blank: bool):
    tokenizer = read(tmp_path, **sentencepiece_keys(ggml__add_space_prefix=blank))
    random = Random(0)
    for _ in range(200):
        text = "".join(random.choices("aabbccdd é", k=random.randrange(1, 12)))
        wanted = merged(f" {text}" if blank else text)
        ids = tokenizer.encode(text)
        assert ids == [1, *wanted]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_text_behind_a_control_token_begins_with_a_blank(tmp_path: Path):
    tokenizer = read(tmp_path, **sentencepiece_keys())
    ids = tokenizer.encode("a<|user|>cd<br>dd", add_special_tokens=False)
    assert ids == [*merged(" a"), 3, *merged(" cd"), 4, *merged(" dd")]


def test_control_tokens_of_phi_3_swallow_blanks(tmp_path: Path):
    path = tmp_path / "tiny.gguf"
    for name, text in (("Phi-3 mini", " cd"), ("Llama 2", "  \n cd")):
        keys = {f"tokenizer.{k.replace('__', '.')}": v for k, v in sentencepiece_keys().items()}
        write_gguf(path, **keys, **{"general.name": name})
        ids = tokenizer_of(open_gguf(path)).encode("<|user|> \n cd", add_special_tokens=False)
        assert ids == [3, *merged(text)]
