"""Drafts from the text so far: what followed the last tokens earlier may follow them again.

Prompt lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding), a case of
speculative decoding (Leviathan et al. 2023, arXiv 2211.17192). The model samples every position as
it would without drafts, and its own tokens are written: a draft that it does not confirm costs a
row of a step and changes nothing.
"""

from server.engine.speculation.step_cost import best_draft_count, updated_acceptance

_MATCH_LENGTHS = (3, 2)  # tokens that must match, the longest first
_PROBE_INTERVAL = 32  # written tokens between single drafts while drafts do not pay
_FIRST_ACCEPTANCE = 0.6  # assumed before any draft was verified
_WEIGHT = 0.15  # of one draft in the moving average of the acceptance


class PromptLookup:
    """The drafts for one sequence.

    `proposed` and `accepted` count all verified drafts, `rounds` how often there were some.
    """

    def __init__(self) -> None:
        self.rounds = 0
        self.proposed = 0
        self.accepted = 0
        self._acceptance = _FIRST_ACCEPTANCE
        self._indexed = 0
        self._successor: dict[tuple[int, ...], int] = {}  # positions behind runs of tokens
        self._since_draft = 0

    def propose(self, tokens: list[int], verify_cost: float, limit: int) -> list[int]:
        """Return up to `limit` tokens that may follow `tokens`; none while drafts do not pay.

        `verify_cost` is the cost of verifying a draft, over that of a step. `tokens` only ever
        grows from call to call.
        """
        self._index(tokens)
        self._since_draft += 1
        count = min(limit, best_draft_count(self._acceptance, verify_cost)[1])
        if count == 0 and limit and self._since_draft >= _PROBE_INTERVAL:
            count = 1
        start = self._match(tokens)
        if count == 0 or start is None:
            return []
        self._since_draft = 0
        return _continuation(tokens, start, count)

    def pays(self, tokens: list[int], verify_cost: float) -> bool:
        """Return whether `propose` has drafts for `tokens` that are worth verifying."""
        self._index(tokens)
        worthwhile = best_draft_count(self._acceptance, verify_cost)[1] > 0
        return worthwhile and self._match(tokens) is not None

    def record_verified(self, proposed: int, accepted: int, by_lookup: bool = True) -> None:
        """Count verified drafts; unless a variant made them, update the acceptance, too."""
        self.rounds += 1
        self.proposed += proposed
        self.accepted += accepted
        if by_lookup:
            self._acceptance = updated_acceptance(self._acceptance, proposed, accepted, _WEIGHT)

    def _match(self, tokens: list[int]) -> int | None:
        """Return the position behind the latest earlier occurrence of the last tokens."""
        for size in _MATCH_LENGTHS:
            start = self._successor.get(tuple(tokens[-size:])) if len(tokens) >= size else None
            if start is not None:
                return start
        return None

    def _index(self, tokens: list[int]) -> None:
        """Index what followed each run of tokens; the last run has no successor yet."""
        for end in range(self._indexed, len(tokens)):
            for size in _MATCH_LENGTHS:
                if end >= size:
                    self._successor[tuple(tokens[end - size : end])] = end
        self._indexed = len(tokens)


def _continuation(tokens: list[int], start: int, count: int) -> list[int]:
    """Return `count` tokens from `start` on; behind the end they are repeated from `start`."""
    period = len(tokens) - start
    return [tokens[start + index % period] for index in range(count)]
