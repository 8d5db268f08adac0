"""How many tokens a text has at least, which its length tells before it is tokenised."""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

_FOLDING = 4  # by how much, at most, Unicode normalisation and lower case shorten a text's bytes
_KEEPING = {"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation"}  # pre-tokenizers


class _Part(Protocol):
    """A normaliser or pre-tokenizer, which describes itself in JSON."""

    def __getstate__(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TextBound:
    """A token stands for at most `per_token` bytes of a text, of which `dropped` do not count."""

    per_token: int
    dropped: bytes = b""

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that `text` has at least."""
        return -(-len(text.encode().translate(None, self.dropped)) // self.per_token)


def text_bound(tokenizer: PreTrainedTokenizerBase) -> TextBound | None:
    """The bound of a tokenizer.

    None where one token may stand for any length of text: where blanks or unknown characters are
    dropped or run together, or where it cannot be told.
    """
    if not tokenizer.is_fast:
        return None
    fast = tokenizer.backend_tokenizer
    normalizer, pre_tokenizer = _state(fast.normalizer), _state(fast.pre_tokenizer)
    factor = _shortening(normalizer)
    added = tokenizer.added_tokens_decoder.values()
    if factor is None or type(fast.model).__name__ not in ("BPE", "Unigram"):
        return None
    if _drops(pre_tokenizer) or any(token.lstrip or token.rstrip for token in added):
        return None
    vocab = fast.get_vocab(with_added_tokens=False)
    widest = max((len(token.content.encode()) for token in added), default=1)
    if "ByteLevel" in {part["type"] for part in _parts(normalizer) + _parts(pre_tokenizer)}:
        # Each character of a token is one byte; a byte without a token of its own may be dropped.
        dropped = bytes(byte for byte, letter in _byte_letters().items() if letter not in vocab)
        return TextBound(factor * max(widest, *map(len, vocab)), dropped)
    if not getattr(fast.model, "byte_fallback", False) or "<0xFF>" not in vocab:
        return None
    return TextBound(factor * max(widest, *(len(name.encode()) for name in vocab)))


def _byte_letters() -> dict[int, str]:
    """The character that byte-level tokenizers write each byte with: itself, if it is visible."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {
        byte: chr(256 + at) for at, byte in enumerate(others)
    }


def _state(part: _Part | None) -> dict[str, Any] | None:
    """A tokenizer's part as its JSON description."""
    found: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return found


def _parts(state: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A description, and the descriptions of what it is made of."""
    if state is None:
        return []
    inner = [*state.get("normalizers", ()), *state.get("pretokenizers", ())]
    return [state] if not inner else [part for entry in inner for part in _parts(entry)]


def _shortening(state: dict[str, Any] | None) -> int | None:
    """By which factor a normaliser may shorten a text; None where there is no bound."""
    factor = 1
    for part in _parts(state):
        match part["type"]:
            case "Prepend" | "ByteLevel":
                pass
            case "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase":
                factor *= _FOLDING
            case "Replace" if part["content"] and "String" in part["pattern"]:
                old, new = part["pattern"]["String"], part["content"]
                factor *= -(-len(old.encode()) // len(new.encode())) or 1
            case _:
                return None
    return factor


def _drops(state: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer may drop some of the text."""
    return any(
        part["type"] not in _KEEPING or part.get("behavior") == "Removed" for part in _parts(state)
    )
