"""The largest number of tokens that a model is served with."""

import logging

from server.engine.loading.packed_file import BaseFacts

log = logging.getLogger(__name__)


def limit_context(facts: BaseFacts, wanted: int | None) -> int:
    """Return the largest number of tokens of a prompt and its answer.

    It is that of the configuration, at most `wanted`, and no more than the rotary tables are right
    for: longrope has other factors for longer texts, at all positions.
    """
    asked = facts.configured if wanted is None else min(facts.configured, wanted)
    if facts.longest < asked:
        log.warning(
            "context limited to %d of %d tokens: longer texts need other rotary factors (longrope)",
            facts.longest,
            asked,
        )
    return min(asked, facts.longest)
