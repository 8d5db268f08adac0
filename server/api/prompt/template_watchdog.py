"""Bounds the time and the memory of a process from outside, where the system cannot (Windows)."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

_PERIOD_SECONDS = 0.02


@dataclass(slots=True)
class Watched:
    """What became of a process that is watched: it was ended for its time, or for its memory."""

    too_long: bool = False
    too_large: bool = False


@contextmanager
def watched(pid: int, max_seconds: float, max_memory: int) -> Iterator[Watched]:
    """End the process if the block takes more processor seconds, or the process more bytes."""
    found = Watched()
    done = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(pid, max_seconds, max_memory, found, done), daemon=True
    )
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


def _watch(
    pid: int, max_seconds: float, max_memory: int, found: Watched, done: threading.Event
) -> None:
    try:
        process = psutil.Process(pid)
        began = _processor_seconds(process)
        while not done.wait(_PERIOD_SECONDS):
            found.too_long = _processor_seconds(process) - began > max_seconds
            found.too_large = process.memory_info().rss > max_memory
            if found.too_long or found.too_large:
                process.kill()
                return
    except psutil.NoSuchProcess:  # it has ended by itself
        return


def _processor_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
