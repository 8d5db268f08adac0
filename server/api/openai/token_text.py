"""What single tokens stand for: their bytes, the text that shows them, and where they begin."""

import codecs
import json
import re
from collections.abc import Sequence

from tokenizers.decoders import Decoder
from transformers import PreTrainedTokenizerBase

LEAST = -9999.0
"""Stands for a log-probability of -inf, which JSON does not have."""
_SPACE = "▁"  # as SentencePiece writes it
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenText:
    """The bytes of a tokenizer's tokens. Its kind is found once, from its decoder.

    Tokens may be parts of characters, so that decoding one alone shows U+FFFD and not its bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._name = tokenizer.convert_ids_to_tokens if backend is None else backend.id_to_token
        steps = set() if backend is None else _steps(backend.decoder)
        self._byte_level = "ByteLevel" in steps
        self._byte_tokens = "ByteFallback" in steps
        self._pieces = bool(steps & {"ByteFallback", "Metaspace"})
        added = tokenizer.added_tokens_decoder.items()
        self.special = frozenset(token for token, entry in added if entry.special)

    def data(self, token: int) -> bytes:
        """What `token` adds to a text behind other tokens; nothing for an unknown id."""
        piece: str | None = self._name(token)
        if piece is None:
            return b""
        if self._byte_level:
            try:
                return bytes(map(_BYTE_OF.__getitem__, piece))
            except KeyError:  # an added token, which is its own text
                return piece.encode()
        if self._byte_tokens and (found := _BYTE.fullmatch(piece)):
            return bytes.fromhex(found[1])
        return piece.replace(_SPACE, " ").encode() if self._pieces else self._alone(token)

    def prompt(self, tokens: Sequence[int]) -> list[bytes]:
        """What each of these adds to a text that begins with them, special tokens included.

        SentencePiece models drop the space that their first token may begin with.
        """
        found = [self.data(token) for token in tokens]
        if self._pieces and found and found[0].startswith(b" "):
            found[0] = self._alone(tokens[0])
        return found

    def written(self, token: int) -> bytes:
        """What `token` adds to an answer: special tokens are left out of its text."""
        return b"" if token in self.special else self.data(token)

    def shown(self, token: int) -> str:
        """The token as text; as `bytes:\\xe2\\x80` if it is not whole characters."""
        return shown(self.data(token))

    def _alone(self, token: int) -> bytes:
        return str(self._tokenizer.decode([token])).encode()


class Offsets:
    """Counts the characters of a text as its bytes come, from `start` on.

    A character that is not finished counts as one, and so does what is no character (U+FFFD).
    """

    def __init__(self, start: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._closed = start  # characters that no further byte can change

    def next(self, data: bytes) -> int:
        """Where the character begins that holds the first byte of `data`, which comes next."""
        first = self._closed + len(self._decoder.decode(data[:1]))
        at = first - 1 + self._open() if data else self._closed
        self._closed = first + len(self._decoder.decode(data[1:]))
        return at

    def _open(self) -> bool:
        """Whether the last bytes begin a character that is not finished."""
        return bool(self._decoder.getstate()[0])


def shown(data: bytes) -> str:
    """Bytes as text; as `bytes:\\xe2\\x80`, with all of them escaped, if they are no text."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _steps(decoder: Decoder | None) -> set[str]:
    """The names of what a tokenizer's decoder does."""
    if decoder is None:
        return set()
    found = json.loads(decoder.__getstate__())
    return {step["type"] for step in found.get("decoders", [found])}


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary, as GPT-2 numbered them."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + at): b for at, b in enumerate(moved)}


_BYTE_OF = _byte_alphabet()
