"""What may still change of a request that waits: its action, chosen when its prompt is read."""

from collections.abc import Callable
from typing import NamedTuple

from pruners.kv import KVBudget
from pruners.reading.reader import PromptReader
from pruners.variant import VariantSpec


class EngineAction(NamedTuple):
    """An action as the engine takes it; see `GenerationRequest` for the fields."""

    variant: VariantSpec
    kv_budget: KVBudget | None
    reader: PromptReader | None


Decide = Callable[[], EngineAction]
"""Returns the final action of a request. Called in the engine's thread, so it has to be quick. An
error ends the request. All answers of one HTTP request share one."""
