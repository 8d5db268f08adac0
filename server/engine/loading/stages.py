"""The stages of a start: what is being done, how far it is, and how long each one took."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

log = logging.getLogger(__name__)


def log_stage(name: str, seconds: float, depth: int) -> None:
    """Log how long a stage took."""
    log.info("%s: %.2f s", name, seconds)


class StartupStages:
    """What a start is busy with: the `name` of a stage, and its `progress` from 0 to 1.

    The progress is None where it is not known. The thread that starts writes, any thread reads.
    `on_end` is called with a stage's name, its seconds, and in how many other stages it is.
    """

    def __init__(self, on_end: Callable[[str, float, int], None] = log_stage) -> None:
        self.name = "start"
        self.progress: float | None = None
        self.depth = 0
        self.on_end = on_end


_watched: ContextVar[StartupStages | None] = ContextVar("startup_stages", default=None)


def watch(stages: StartupStages) -> None:
    """Tell `stages` of all stages of this thread from now on."""
    _watched.set(stages)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Mark a stage of a start, and tell how long it took. Where nobody watches, do nothing."""
    stages = _watched.get()
    if stages is None:
        yield
        return
    outer, started = (stages.name, stages.progress), time.perf_counter()
    stages.name, stages.progress = name, None
    stages.depth += 1
    try:
        yield
    finally:
        stages.name, stages.progress = outer
        stages.depth -= 1
    stages.on_end(name, time.perf_counter() - started, stages.depth)


def advance(share: float) -> None:
    """Say how much of the current stage is done, from 0 to 1."""
    stages = _watched.get()
    if stages is not None:
        stages.progress = share
