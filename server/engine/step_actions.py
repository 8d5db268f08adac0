"""What other threads ask the engine's thread to do between two of its steps."""

import threading
from collections.abc import Callable
from concurrent.futures import Future


class StepActions:
    """Functions that wait to be called by the engine's thread. Any thread may call `add`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # of all below
        self._waiting: list[tuple[Callable[[], None], Future[None]]] = []
        self._closed = False

    def add(self, action: Callable[[], None]) -> "Future[None]":
        """Queue a function; the result says when it was called, and has what it raised.

        It is cancelled if the engine ends before.
        """
        done: Future[None] = Future()
        with self._lock:
            if self._closed:
                done.cancel()
            else:
                self._waiting.append((action, done))
        return done

    def run(self) -> None:
        """Call what waits, in order."""
        if not self._waiting:
            return
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for action, done in waiting:
            try:
                action()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

    def close(self) -> None:
        """Cancel what waits; the engine has ended."""
        with self._lock:
            self._closed = True
            for _, done in self._waiting:
                done.cancel()
            self._waiting.clear()
