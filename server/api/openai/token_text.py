"""What single tokens stand for: their bytes, their text, and their positions in a text."""

import codecs
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizers.decoders import Decoder

from server.api.byte_level import BYTE_OF_CHARACTER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_LOGPROB = -9999.0
"""The smallest log-probability that is sent: JSON has no -inf."""
_SPACE = "▁"  # as SentencePiece writes it
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenText:
    """The bytes of a tokenizer's tokens.

    A token may be a part of a character, so that decoding it alone gives U+FFFD. How tokens hold
    their bytes depends on the tokenizer's decoder, which is examined once.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._name = tokenizer.convert_ids_to_tokens if backend is None else backend.id_to_token
        steps = set() if backend is None else _steps(backend.decoder)
        self._byte_level = "ByteLevel" in steps
        self._byte_tokens = "ByteFallback" in steps
        self._sentencepiece = bool(steps & {"ByteFallback", "Metaspace"})
        added = tokenizer.added_tokens_decoder.items()
        self.special = frozenset(token for token, entry in added if entry.special)

    def data(self, token: int) -> bytes:
        """Return the bytes that a token adds after other tokens; none for an unknown id."""
        piece: str | None = self._name(token)
        if piece is None:
            return b""
        if self._byte_level:
            try:
                return bytes(map(BYTE_OF_CHARACTER.__getitem__, piece))
            except KeyError:  # an added token, which is its own text
                return piece.encode()
        if self._byte_tokens and (byte := _BYTE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        return piece.replace(_SPACE, " ").encode() if self._sentencepiece else self._alone(token)

    def prompt(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the bytes that each token of a prompt adds to its text, special tokens included.

        SentencePiece models drop the space that their first token may begin with.
        """
        parts = [self.data(token) for token in tokens]
        if self._sentencepiece and parts and parts[0].startswith(b" "):
            parts[0] = self._alone(tokens[0])
        return parts

    def written(self, token: int) -> bytes:
        """Return the bytes that a token adds to an answer, whose text has no special tokens."""
        return b"" if token in self.special else self.data(token)

    def shown(self, token: int) -> str:
        """Return a token as text; as `bytes:\\xe2\\x80` if it is not whole characters."""
        return shown(self.data(token))

    def _alone(self, token: int) -> bytes:
        return str(self._tokenizer.decode([token])).encode()


class TextOffsets:
    """Counts the characters of a text as its bytes come, from `start` on.

    An unfinished character counts as one, and so does each U+FFFD for bytes that are no text.
    """

    def __init__(self, start: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._closed = start  # characters that no further byte can change

    def next(self, data: bytes) -> int:
        """Add the next bytes. Return the position of the character that holds the first of them."""
        first = self._closed + len(self._decoder.decode(data[:1]))
        at = first - 1 + self._open() if data else self._closed
        self._closed = first + len(self._decoder.decode(data[1:]))
        return at

    def _open(self) -> bool:
        """Whether the last bytes are the beginning of an unfinished character."""
        return bool(self._decoder.getstate()[0])


def id_name(token: int) -> str:
    """Return a name for a token that no other has, as vLLM writes it; texts may be equal."""
    return f"token_id:{token}"


def shown(data: bytes) -> str:
    """Return bytes as text, or escaped (`bytes:\\xe2\\x80`) if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _steps(decoder: Decoder | None) -> set[str]:
    """Return the names of the steps of a tokenizer's decoder."""
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {step["type"] for step in state.get("decoders", [state])}
