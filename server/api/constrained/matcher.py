"""The state of one answer's grammar (see `TokenConstraint`), by `llguidance`."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from server.api.constrained.vocabulary import GrammarVocabulary
from server.engine.constraint import ConstraintError

if TYPE_CHECKING:
    from llguidance import LLMatcher

_FORCED_BYTES = 64  # that are made tokens of at a time
_MESSAGE = 300  # characters of an error message
_WHOLE = ("NoExtension", "NoExtensionBias", "EndOfSentence")  # why a grammar may have stopped


class GrammarMatcher:
    """What may follow in one answer. `end_tokens` end it where the grammar allows an end.

    `last_resort` are used in their place if nothing else may come and a request has no end tokens.
    """

    def __init__(
        self,
        matcher: "LLMatcher",
        vocabulary: GrammarVocabulary,
        end_tokens: Collection[int],
        last_resort: Collection[int],
    ) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        end = vocabulary.end  # the bit by which the library says that the text may end
        self._words = end // 32 + 1
        self._end_word, self._end_bit = end // 32, np.uint32(1 << end % 32)
        self._end_tokens = frozenset(end_tokens)
        self._last_resort = frozenset(last_resort)
        self._end_mask = _bits(self._end_tokens, self._words)
        self._failure = ""
        self.ended = False

    def masks(self, drafts: Sequence[int]) -> Tensor:
        """Return which tokens may come next, and which behind each draft. See `TokenConstraint`."""
        found = np.zeros((1 + len(drafts), self._words), np.uint32)
        taken = 0
        for row, mask in enumerate(found):
            self._fill(mask)
            if row == len(drafts) or not self._matcher.try_consume_tokens([drafts[row]]):
                break
            taken += 1
        if taken:
            self._matcher.rollback(taken)
        return torch.from_numpy(found.view(np.int32))

    def agreed(self, drafts: Sequence[int]) -> int:
        """Return how many of the drafts, from the first on, the grammar takes."""
        return self._matcher.validate_tokens(list(drafts)) if drafts and not self._failure else 0

    def forced(self) -> list[int]:
        """Return tokens of text that must come next, as the tokenizer would write it."""
        text = self._matcher.compute_ff_bytes()[:_FORCED_BYTES]
        # The last token may reach beyond the forced text.
        return self._vocabulary(text)[:-1] if text else []

    def accept(self, token: int) -> None:
        """Go on behind a token that was written. Raise `ConstraintError` if that cannot be."""
        if self._failure:
            raise ConstraintError(f"the form of the answer cannot be kept: {self._failure}")
        if token in self._end_tokens or token in self._last_resort:
            self.ended = True
            return
        if not self._matcher.consume_token(token):
            reason = self._matcher.get_error().partition("\n")[0] or f"token {token} does not fit"
            raise ConstraintError(f"the form of the answer cannot be kept: {reason}"[:_MESSAGE])
        if self._matcher.is_stopped():
            self._check()
            self.ended = True

    def _fill(self, mask: "np.ndarray[tuple[int], np.dtype[np.uint32]]") -> None:
        """Write the mask of the present state, uint32 `[words]`."""
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check()
        if not mask[self._end_word] & self._end_bit:
            return
        mask[self._end_word] &= ~self._end_bit
        mask |= self._end_mask
        if not mask.any():
            mask |= _bits(self._last_resort, self._words)

    def _check(self) -> None:
        """Note a failure of the grammar, which is then raised by `accept`."""
        stopped = self._matcher.is_stopped() and self._matcher.stop_reason() not in _WHOLE
        if self._matcher.is_error() or stopped:
            message = self._matcher.get_error() or self._matcher.stop_reason()
            self._failure = message.partition("\n")[0][:_MESSAGE]


def _bits(tokens: Collection[int], words: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    """Return the mask of some tokens, uint32 `[words]`."""
    mask = np.zeros(words, np.uint32)
    for token in tokens:
        mask[token // 32] |= np.uint32(1 << token % 32)
    return mask
