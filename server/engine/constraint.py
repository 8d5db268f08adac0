"""What bounds the tokens of an answer: the state of its grammar, as the engine uses it."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class ConstraintError(RuntimeError):
    """An answer cannot go on under its constraint. The message is for the client."""


class TokenConstraint(Protocol):
    """The grammar of one answer and how much of it was written. Used by one thread at a time."""

    @property
    def ended(self) -> bool:
        """Whether what was written is whole, and nothing may follow."""
        ...

    def masks(self, drafts: Sequence[int]) -> Tensor:
        """Return which tokens may come next, and which behind each draft.

        They are int32 `[1 + drafts, words]`. Bit `token % 32` of word `token // 32` is set for a
        token that may come. Where the text is whole, the answer's end tokens are among them. The
        state does not change. What goes wrong is raised by `accept`.
        """
        ...

    def agreed(self, drafts: Sequence[int]) -> int:
        """Return how many of the drafts, from the first on, the grammar takes."""
        ...

    def forced(self) -> list[int]:
        """Return tokens of text that must come next, as the tokenizer would write it."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind a token that was written. Raise `ConstraintError` if that cannot be."""
        ...
