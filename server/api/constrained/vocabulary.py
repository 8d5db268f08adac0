"""A model's tokens as bytes, from which the grammar library builds its tree of tokens."""

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from server.api.openai.token_text import TokenText

if TYPE_CHECKING:
    from llguidance import LLTokenizer, TokenizerWrapper
    from transformers import PreTrainedTokenizerBase


class GrammarVocabulary:
    """The tokens of a model, as `llguidance` reads them.

    Behind the model's own `size` tokens there is one more, `end`, by which a grammar says that the
    text may end: which of the model's tokens end an answer depends on the request.
    """

    is_tokenizer_wrapper = True  # how llguidance knows such an object
    bos_token_id = None

    def __init__(
        self, tokenizer: "PreTrainedTokenizerBase", size: int, end_tokens: Collection[int]
    ) -> None:
        texts = TokenText(tokenizer)
        self._tokenizer = tokenizer
        self.size = self.end = self.eos_token_id = size
        names = len(tokenizer)
        self.tokens = [texts.data(token) if token < names else b"" for token in range(size)]
        self.tokens.append(b"<end of the text>")
        special = {token for token in texts.special | set(end_tokens) if token < size}
        self.special_token_ids = sorted({*special, self.end})

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the tokens of a text, as the model's tokenizer writes it within others."""
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        tokens = list(self._tokenizer.encode(text, add_special_tokens=False))
        # SentencePiece models put a blank before a text.
        blank = tokens and self.tokens[tokens[0]] == b" " and not text.startswith(" ")
        return tokens[1:] if blank else tokens

    def build(self) -> "LLTokenizer":
        """Return the library's tree of the tokens, which takes a part of a second."""
        from llguidance import LLTokenizer

        return LLTokenizer(cast("TokenizerWrapper", self))
