"""The tokens of a GGUF file as its metadata lists them."""

from dataclasses import dataclass

from gguf import TokenType
from tokenizers import AddedToken

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.parts import GgufModel

# Files of these models leave out that their control tokens swallow the blanks behind them.
_BLANKS_SWALLOWED = ("phi-3", "phi3")
_BUT_NOT_BY = frozenset({"<unk>", "<s>", "<|endoftext|>"})


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Tokens by id with their types and scores; there are no scores if the file has none."""

    tokens: list[str]
    types: list[int]
    scores: list[float]
    swallows_blanks: bool

    def ids(self) -> dict[str, int]:
        """Return the id of each token."""
        return {token: index for index, token in enumerate(self.tokens)}

    def of_type(self, *types: TokenType) -> list[str]:
        """Return the tokens of some types, by id."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]

    def added(self) -> list[AddedToken]:
        """Return the tokens that are found in a text before it is split, by id.

        As in llama.cpp: control and unknown tokens, and those that users defined.
        """
        found = []
        for token, kind in zip(self.tokens, self.types, strict=True):
            if kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
                special = kind != TokenType.USER_DEFINED
                strips = self.swallows_blanks and token not in _BUT_NOT_BY
                found.append(AddedToken(token, special=special, normalized=False, rstrip=strips))
        return found


def read_vocabulary(model: GgufModel) -> Vocabulary:
    """Read the tokens of a file. Raises `UnsupportedModelError` if they do not fit together."""
    where = model.path.name
    tokens = [str(token) for token in model.array("tokenizer.ggml.tokens")]
    if not tokens:
        raise UnsupportedModelError(f"{where}: GGUF key tokenizer.ggml.tokens is missing")
    for index, token in enumerate(tokens):
        if not token:
            tokens[index] = f"[EMPTY_{index}]"  # as llama.cpp calls it
    if len(set(tokens)) < len(tokens):
        twice = next(token for index, token in enumerate(tokens) if token in tokens[:index])
        raise UnsupportedModelError(
            f"{where}: tokenizer.ggml.tokens holds the token {twice!r} twice"
        )
    types = [int(kind) for kind in model.array("tokenizer.ggml.token_type")]
    scores = [float(score) for score in model.array("tokenizer.ggml.scores")]
    for key, values in (("token_type", types), ("scores", scores)):
        if values and len(values) != len(tokens):
            raise UnsupportedModelError(
                f"{where}: tokenizer.ggml.{key} has {len(values)} entries for {len(tokens)} tokens"
            )
    name = str(model.metadata.get("general.name", "")).lower()
    swallows = any(part in name for part in _BLANKS_SWALLOWED)
    return Vocabulary(tokens, types or [TokenType.NORMAL] * len(tokens), scores, swallows)
