"""A lower bound on the tokens of a text, from its length alone, before it is tokenised."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from server.api.byte_level import CHARACTER_OF_BYTE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_FOLDING = 4  # largest factor by which normalisation or lower case shortens a text's bytes
# Pre-tokenizers that keep all of a text.
_LOSSLESS = {"ByteLevel", "Metaspace", "Split", "Digits", "Punctuation"}


class _Part(Protocol):
    """A normaliser or pre-tokenizer, whose state is JSON."""

    def __getstate__(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TextBound:
    """A token stands for at most `bytes_per_token` bytes of a text, not counting the `dropped`."""

    bytes_per_token: int
    dropped: bytes = b""

    def min_tokens(self, text: str) -> int:
        """Return a number of tokens that `text` has at least."""
        return -(-len(text.encode().translate(None, self.dropped)) // self.bytes_per_token)


def text_bound(tokenizer: "PreTrainedTokenizerBase") -> TextBound | None:
    """Return the bound of a tokenizer, or None if there is none or it is not known.

    There is none where a token may stand for any length of text: where blanks or unknown
    characters are dropped or merged.
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
        dropped = bytes(byte for byte, letter in CHARACTER_OF_BYTE.items() if letter not in vocab)
        return TextBound(factor * max(widest, *map(len, vocab)), dropped)
    if not getattr(fast.model, "byte_fallback", False) or "<0xFF>" not in vocab:
        return None
    return TextBound(factor * max(widest, *(len(name.encode()) for name in vocab)))


def _state(part: _Part | None) -> dict[str, Any] | None:
    """Return the state of a tokenizer's part as JSON."""
    state: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return state


def _parts(state: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the states of the parts of a sequence, or the state itself."""
    if state is None:
        return []
    inner = [*state.get("normalizers", ()), *state.get("pretokenizers", ())]
    return [state] if not inner else [part for entry in inner for part in _parts(entry)]


def _shortening(state: dict[str, Any] | None) -> int | None:
    """Return the factor by which a normaliser may shorten a text; None if it has no bound."""
    factor = 1
    for part in _parts(state):
        match part["type"]:
            case "Prepend" | "ByteLevel":
                pass
            case "NFC" | "NFD" | "NFKC" | "NFKD" | "Lowercase":
                factor *= _MAX_FOLDING
            case "Replace" if part["content"] and "String" in part["pattern"]:
                old, new = part["pattern"]["String"], part["content"]
                factor *= -(-len(old.encode()) // len(new.encode())) or 1
            case _:
                return None
    return factor


def _drops(state: dict[str, Any] | None) -> bool:
    """Whether a pre-tokenizer may drop some of the text."""
    return any(
        part["type"] not in _LOSSLESS or part.get("behavior") == "Removed" for part in _parts(state)
    )
