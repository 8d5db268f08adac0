"""How an engine is set up: its bounds, and who is called from its thread."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from controller import StepRecord
from server.engine.cache.memory_relief import MemoryRelief
from server.engine.runner import Failure


class IdleWork(Protocol):
    """What the engine does while no request runs or waits, in pieces no longer than a step."""

    def step(self) -> bool:
        """Do one piece; return False if there is nothing to do."""
        ...

    def make_way(self) -> None:
        """Give back the memory that requests may need."""
        ...

    @property
    def slots(self) -> int:
        """Return how many slots of the cache `make_way` would give back. Called by any thread."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How many requests may wait, and who is called from the engine's thread.

    At most `max_waiting` requests wait, with `max_waiting_tokens` tokens to be read together.
    `threads` is the number of PyTorch's threads; None leaves it. `on_step` is called after each
    pass of the decoder, `on_failure` for everything that fails. `relief` gives memory back.
    `on_arrival` is called by whoever submits a request, before it is queued.
    """

    max_waiting: int
    max_waiting_tokens: int
    threads: int | None = None
    on_step: Callable[[StepRecord], None] | None = None
    on_failure: Callable[[Failure], None] | None = None
    idle_work: IdleWork | None = None
    relief: MemoryRelief | None = None
    on_arrival: Callable[[], None] | None = None
