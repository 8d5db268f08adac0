"""From text to token ids, with the GIL released, and refused by its length first."""

import re
from typing import Any

from transformers import PreTrainedTokenizerBase

from server.api.errors import ApiError
from server.api.prompt.text_bound import text_bound

# Put around the control tokens in a user's text; private characters that no text needs.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"


class PromptEncoder:
    """Encodes for one model. May be called from several threads at once.

    `longest` is the context in tokens, `vocab` the number of rows of the embedding.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab: int, longest: int) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._longest = longest
        self._fast: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._fast is not None:  # once: each call that sets them could meet another one
            self._fast.no_truncation()
            self._fast.no_padding()
            self._fast.encode_special_tokens = False
        names = [name for name in tokenizer.get_added_vocab() if not name.isspace()]
        alternatives = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
        self._control = re.compile(alternatives)
        self._marks = re.compile(f"{_OPEN}({alternatives}){_CLOSE}|[{_OPEN}{_CLOSE}]")
        self._newline = self._ids("\n")
        self._prefix, self._suffix = self._frame()
        self.bound = text_bound(tokenizer)

    def encode(self, text: str, special: bool) -> list[int]:
        """The ids of a text, its control tokens marked or not.

        `special` adds the tokens that the tokenizer puts around a text, each once: a text that
        begins with BOS gets no second one. Raises `ApiError` 400 for a text that cannot fit, or
        that holds a token without an embedding.
        """
        fewest = 0 if self.bound is None else self.bound.fewest_tokens(text)
        if fewest > self._longest:
            raise too_long(self._longest, f"the prompt has at least {fewest}")
        marked = _OPEN in text or _CLOSE in text
        tokens = self._marked_ids(text) if marked else self._ids(text)
        if special:
            prefix, suffix = self._prefix, self._suffix
            if tokens[: len(prefix)] != prefix:
                tokens = prefix + tokens
            if suffix and tokens[-len(suffix) :] != suffix:
                tokens = tokens + suffix
        self.check(tokens)
        return tokens

    def check(self, tokens: list[int]) -> None:
        """Raise `ApiError` 400 for an id that the model has no embedding for."""
        if tokens and max(tokens) >= self._vocab:
            found = max(tokens)
            name = self._tokenizer.convert_ids_to_tokens(found) if found < 2**31 else None
            shown = f"{found} ('{name}')" if name else str(found)
            raise ApiError(
                400, f"prompt: no token {shown}; the vocabulary has {self._vocab} tokens", "prompt"
            )

    def decode(self, tokens: list[int]) -> str:
        """The text of ids that were checked."""
        return str(self._tokenizer.decode(tokens))

    def marked(self, text: str) -> str:
        """A text whose control tokens are marked as no such tokens."""
        clean = text.replace(_OPEN, "").replace(_CLOSE, "")
        return self._control.sub(rf"{_OPEN}\g<0>{_CLOSE}", clean)

    def marked_data(self, value: Any) -> Any:  # noqa: ANN401
        """JSON data with all its strings marked but the keys."""
        if isinstance(value, str):
            return self.marked(value)
        if isinstance(value, list):
            return [self.marked_data(entry) for entry in value]
        if isinstance(value, dict):
            return {key: self.marked_data(entry) for key, entry in value.items()}
        return value

    def _ids(self, text: str) -> list[int]:
        if self._fast is None:
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            # `encode` would hold the GIL all the while; a batch of one does not.
            (encoding,) = self._fast.encode_batch_fast([text], add_special_tokens=False)
            if len(encoding) > self._longest:
                raise too_long(self._longest, f"the prompt has {len(encoding)}")
            tokens = encoding.ids
        return tokens

    def _marked_ids(self, text: str) -> list[int]:
        """Marked control tokens as plain text, the rest as usual.

        A mark without its partner separates what is on its sides all the same.
        """
        if self._fast is None:
            raise ApiError(400, "plain_text is not supported with this model's tokenizer")
        pieces = self._marks.split(text)
        if len(pieces) > 2 * self._longest:  # each second one is a token at least
            raise too_long(self._longest, f"the prompt has more than {len(pieces) // 2}")
        tokens = self._ids(pieces[0])
        for at, piece in enumerate(pieces[1:], 1):
            if not piece:
                continue
            found = self._continued(piece, as_text=at % 2 == 1)
            if at % 2 == 1 and self._tokenizer.convert_tokens_to_ids(piece) in found:
                raise ApiError(400, f"this tokenizer cannot write '{piece}' as plain text")
            tokens += found
        return tokens

    def _continued(self, piece: str, as_text: bool) -> list[int]:
        """Ids of a piece in the middle: behind a line's end, no tokenizer adds a blank to it."""
        encode = self._text_ids if as_text else self._ids
        tokens = encode("\n" + piece)
        if tokens[: len(self._newline)] == self._newline:
            return tokens[len(self._newline) :]
        return encode(piece)

    def _text_ids(self, text: str) -> list[int]:
        """Ids of a text in which no added token is looked for."""
        if self._fast.normalizer is not None:
            text = self._fast.normalizer.normalize_str(text)
        pieces = [text]
        if self._fast.pre_tokenizer is not None:
            pieces = [piece for piece, _ in self._fast.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for piece in pieces for token in self._fast.model.tokenize(piece)]

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a text."""
        inner = self._ids("a")
        framed: list[int] = self._tokenizer.encode("a", add_special_tokens=True)
        for at in range(len(framed) - len(inner) + 1):
            if framed[at : at + len(inner)] == inner:
                return framed[:at], framed[at + len(inner) :]
        return [], []


def too_long(longest: int, what: str) -> ApiError:
    """The error for a prompt that is longer than the context."""
    message = f"this model's context is {longest} tokens; {what}"
    return ApiError(400, message, "prompt", "context_length_exceeded")
