"""From text to token ids; a text that is too long is refused before it is tokenised."""

import re
from typing import TYPE_CHECKING, Any

from server.api.errors import ApiError, misfit
from server.api.prompt.text_bound import text_bound

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CUT_TOKENS = 64  # before those that are kept of a text: where it is cut, tokens are others
# Marks around control tokens that are text: characters for private use, which no text needs.
_OPEN, _CLOSE = "\U000f0000", "\U000f0001"


class PromptEncoder:
    """Encodes text for one model. Several threads may call it at once.

    `vocab` is the number of rows of the embedding, `context_tokens` the length of the context.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", vocab: int, context_tokens: int
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab = vocab
        self._context_tokens = context_tokens
        self._fast: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._fast is not None:  # once: setting these is not safe while others encode
            self._fast.no_truncation()
            self._fast.no_padding()
            self._fast.encode_special_tokens = False
        names = [name for name in tokenizer.get_added_vocab() if not name.isspace()]
        alternatives = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)"
        self._control = re.compile(alternatives)
        self._marks = re.compile(f"{_OPEN}({alternatives}){_CLOSE}|[{_OPEN}{_CLOSE}]")
        self._newline = self._ids("\n")
        self._prefix, self._suffix = self._special_affixes()
        self.bound = text_bound(tokenizer)

    def encode(self, text: str, special: bool, keep_last: int | None = None) -> list[int]:
        """Return the ids of a text, in which control tokens may be marked as text (`mark`).

        `special` adds the tokens that the tokenizer puts around a text, each once: a text that
        begins with BOS gets no second one. Raise `ApiError` 400 for a text that cannot fit the
        context, or that holds a token without an embedding.

        With `keep_last` so many of its last tokens are kept, those around the text among them.
        """
        if keep_last is not None:
            text = self._end_of(text, keep_last)
        min_tokens = 0 if self.bound is None else self.bound.min_tokens(text)
        if min_tokens > self._context_tokens and keep_last is None:
            raise context_length_error(
                self._context_tokens, f"the prompt has at least {min_tokens}"
            )
        marked = _OPEN in text or _CLOSE in text
        tokens = self._marked_ids(text) if marked else self._ids(text, keep_last is None)
        prefix, suffix = (self._prefix, self._suffix) if special else ([], [])
        if keep_last is not None:
            tokens = tokens[-max(1, keep_last - len(prefix) - len(suffix)) :]
        if special:
            if tokens[: len(prefix)] != prefix:
                tokens = prefix + tokens
            if suffix and tokens[-len(suffix) :] != suffix:
                tokens = tokens + suffix
        self.check(tokens)
        return tokens

    def check(self, tokens: list[int]) -> None:
        """Raise `ApiError` 400 for an id that the model has no embedding for."""
        if tokens and max(tokens) >= self._vocab:
            largest = max(tokens)
            name = self._tokenizer.convert_ids_to_tokens(largest) if largest < 2**31 else None
            shown = f"{largest} ('{name}')" if name else str(largest)
            raise ApiError(
                400, f"prompt: no token {shown}; the vocabulary has {self._vocab} tokens", "prompt"
            )

    def decode(self, tokens: list[int]) -> str:
        """Return the text of ids that `check` accepts."""
        return str(self._tokenizer.decode(tokens))

    def mark(self, text: str) -> str:
        """Return a text whose control tokens are marked, so that `encode` takes them as text."""
        clean = text.replace(_OPEN, "").replace(_CLOSE, "")
        return self._control.sub(rf"{_OPEN}\g<0>{_CLOSE}", clean)

    def mark_data(self, value: Any) -> Any:  # noqa: ANN401
        """Return JSON data in which all strings but the keys are marked."""
        if isinstance(value, str):
            return self.mark(value)
        if isinstance(value, list):
            return [self.mark_data(entry) for entry in value]
        if isinstance(value, dict):
            return {key: self.mark_data(entry) for key, entry in value.items()}
        return value

    def _end_of(self, text: str, tokens: int) -> str:
        """Return the end of a text that surely has so many tokens, and some more.

        So the last tokens are those of the whole text, and a long text takes no longer.
        """
        if self.bound is None:
            return text
        return text[-(tokens + _CUT_TOKENS) * self.bound.bytes_per_token :]

    def _ids(self, text: str, bounded: bool = True) -> list[int]:
        if self._fast is None:
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            # `encode` would hold the GIL all the while; a batch of one does not.
            (encoding,) = self._fast.encode_batch_fast([text], add_special_tokens=False)
            if bounded and len(encoding) > self._context_tokens:
                raise context_length_error(self._context_tokens, f"the prompt has {len(encoding)}")
            tokens = encoding.ids
        return tokens

    def _marked_ids(self, text: str) -> list[int]:
        """Return ids in which marked control tokens are plain text.

        A mark without its partner splits the text like a pair of marks.
        """
        if self._fast is None:
            raise misfit("plain_text is not supported with this model's tokenizer")
        pieces = self._marks.split(text)
        if len(pieces) > 2 * self._context_tokens:  # every second piece has at least one token
            raise context_length_error(
                self._context_tokens, f"the prompt has more than {len(pieces) // 2}"
            )
        tokens = self._ids(pieces[0])
        for at, piece in enumerate(pieces[1:], 1):
            if not piece:
                continue
            is_marked = at % 2 == 1
            ids = self._ids_inside(piece, as_text=is_marked)
            if is_marked and self._tokenizer.convert_tokens_to_ids(piece) in ids:
                raise misfit(f"this tokenizer cannot write '{piece}' as plain text")
            tokens += ids
        return tokens

    def _ids_inside(self, piece: str, as_text: bool) -> list[int]:
        """Return the ids of a piece inside a text.

        Some tokenizers put a blank before a text; none does after a line break.
        """
        encode = self._text_ids if as_text else self._ids
        tokens = encode("\n" + piece)
        if tokens[: len(self._newline)] == self._newline:
            return tokens[len(self._newline) :]
        return encode(piece)

    def _text_ids(self, text: str) -> list[int]:
        """Return the ids of a text in which added tokens are text like any other."""
        if self._fast.normalizer is not None:
            text = self._fast.normalizer.normalize_str(text)
        pieces = [text]
        if self._fast.pre_tokenizer is not None:
            pieces = [piece for piece, _ in self._fast.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for piece in pieces for token in self._fast.model.tokenize(piece)]

    def _special_affixes(self) -> tuple[list[int], list[int]]:
        """Return the ids that the tokenizer puts before and after a text."""
        inner = self._ids("a")
        wrapped: list[int] = self._tokenizer.encode("a", add_special_tokens=True)
        for at in range(len(wrapped) - len(inner) + 1):
            if wrapped[at : at + len(inner)] == inner:
                return wrapped[:at], wrapped[at + len(inner) :]
        return [], []


def context_length_error(context_tokens: int, reason: str) -> ApiError:
    """Return the error for a prompt that is longer than the context.

    Clients recognise it by these words, too, which are those of the OpenAI API.
    """
    message = f"this model's maximum context length is {context_tokens} tokens; {reason}"
    return ApiError(400, message, "prompt", "context_length_exceeded")
