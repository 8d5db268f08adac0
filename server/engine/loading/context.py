"""The largest number of tokens that a model is served with."""

import logging

from pruners.architecture import LocatedModel

log = logging.getLogger(__name__)


def limit_context(located: LocatedModel, wanted: int | None) -> int:
    """Return the largest number of tokens of a prompt and its answer.

    It is that of the configuration, at most `wanted`, and no more than the rotary tables are right
    for: longrope has other factors for longer texts, at all positions.
    """
    configured: int = located.model.config.max_position_embeddings
    asked = configured if wanted is None else min(configured, wanted)
    if located.context < asked:
        log.warning(
            "context limited to %d of %d tokens: longer texts need other rotary factors (longrope)",
            located.context,
            asked,
        )
    return min(asked, located.context)
