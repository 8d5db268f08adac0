"""An answer as its reader has it, and the way of what is written from the engine's thread there."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from pruners.variant import VariantSpec
from server.engine.sequence import Delta, Sequence

_MAX_UNREAD = 16_384
"""Deltas that may wait for one reader. If more come, its answers are cancelled: what a slow client
does not read takes no more memory, nor any of the KV cache."""


class Generation:
    """One submitted request. Its deltas are put into `inbox`, the last with a finish reason."""

    def __init__(
        self,
        open_sequence: Callable[[Callable[[Delta], None]], Sequence],
        outbox: "Outbox",
        inbox: "Inbox",
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.inbox = inbox
        self.sequence = open_sequence(lambda delta: outbox.append((self, delta)))

    def narrow(self, variant: VariantSpec) -> None:
        """Go on with a nested variant from the next step on. Raises `ValueError` for others."""
        self.sequence.narrow(variant)

    def cancel(self) -> None:
        """End the request; its memory is free within one step of the engine."""
        self.sequence.cancelled = True


Outbox = list[tuple[Generation, Delta]]
"""What a step wrote. Filled and sent in the engine's thread."""
Inbox = asyncio.Queue[tuple[Generation, Delta]]
"""What was written for one reader. Filled and read in its event loop."""


def send(outbox: Outbox) -> None:
    """Send what a step wrote to the readers, with one wake-up of each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, Outbox] = {}
    for generation, delta in outbox:
        by_loop.setdefault(generation.loop, []).append((generation, delta))
    for loop, deltas in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed, as it may be at shutdown
            loop.call_soon_threadsafe(_deliver, deltas)


def _deliver(deltas: Outbox) -> None:
    for generation, delta in deltas:
        generation.inbox.put_nowait((generation, delta))
        if generation.inbox.qsize() > _MAX_UNREAD:
            generation.cancel()
