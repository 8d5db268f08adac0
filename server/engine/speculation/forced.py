"""Drafts of text to which a grammar leaves no choice, such as the keys of a JSON object."""

from server.engine.constraint import TokenConstraint
from server.engine.speculation.step_cost import best_draft_count

_ACCEPTANCE = 0.9  # the text is certain, but not how the model splits it into tokens


def forced_drafts(constraint: TokenConstraint | None, verify_cost: float, limit: int) -> list[int]:
    """Return up to `limit` tokens that must follow, or none if verifying them does not pay.

    `verify_cost` is the cost of verifying a draft, over that of a step.
    """
    if constraint is None:
        return []
    count = min(limit, best_draft_count(_ACCEPTANCE, verify_cost)[1])
    return constraint.forced()[:count] if count else []
