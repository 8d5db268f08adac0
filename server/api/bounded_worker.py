"""A thread beside the event loop that works for one request at a time."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.api.errors import ApiError

_MAX_QUEUED, _MAX_QUEUED_CHARACTERS = 512, 2**25  # requests that wait for one thread

T = TypeVar("T")


class BoundedWorker:
    """A thread that works for one request at a time, and a bounded queue of others."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._requests = self._characters = 0  # that wait or are worked on
        self._closed = False

    async def run(self, work: Callable[[], T], characters: int) -> T:
        """Return what `work`, on so many characters, returns; raise what it raises.

        Raise `ApiError` 503 if too much is waiting, or the worker is closed.
        """
        characters_full = self._characters + characters > _MAX_QUEUED_CHARACTERS
        full = self._requests >= _MAX_QUEUED or (self._requests and characters_full)
        if full or self._closed:
            reason = "the server is shutting down" if self._closed else "too many requests wait"
            raise ApiError(503, reason, retry_after=1)
        self._requests += 1
        self._characters += characters
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._requests -= 1
            self._characters -= characters

    def close(self) -> None:
        """Take no more work, and drop what waits."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
