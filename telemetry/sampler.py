"""A thread that reads the machine at a fixed period and publishes immutable snapshots."""

import logging
import threading
import time
from dataclasses import fields
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from telemetry.battery import BatteryReader
from telemetry.capacity import CapacityReader
from telemetry.disk import DiskReader
from telemetry.energy import EnergyReader
from telemetry.gpu import GpuReader
from telemetry.host import HostReader
from telemetry.pressure import PressureReader
from telemetry.reader import Reader, Readings
from telemetry.snapshot import Snapshot, missing
from telemetry.thermal import ThermalReader

logger = logging.getLogger(__name__)

_FIELDS = {field.name for field in fields(Snapshot)} - {"taken_at"}
_MAX_READ_SECONDS = 1.0
"""A reader that takes longer is blocked."""
_STOP_SECONDS = 0.5


class Sampler:
    """Calls the readers, which nobody else may call, every `period_seconds`.

    A second thread watches the first. If a reader blocks, its thread is left to it, and a new
    thread calls the other readers. The readings of the blocked one are missing until it returns.

    Threads: any thread may call `latest`; one thread calls `start` and `stop`.
    """

    def __init__(self, *readers: Reader, period_seconds: float = 0.5) -> None:
        self._readers = readers
        self._period = period_seconds
        self._latest: Snapshot | None = None
        self._thread: Thread | None = None
        self._watcher: Thread | None = None
        self._stopping = Event()
        self._first = Event()  # set when a sample is complete
        self._reported: set[Reader] = set()
        self._lock = Lock()  # of the two below, and of `_thread`
        self._reading: tuple[Reader, float] | None = None  # the reader at work, and since when
        self._blocked: dict[Reader, float] = {}  # and since when

    def latest(self) -> Snapshot | None:
        """Return the last snapshot, or None before `start`."""
        return self._latest

    def start(self) -> None:
        """Begin to read; return after the first sample.

        A reader that blocks delays that by a second. Does nothing while running.
        """
        if self._thread is not None:
            return
        self._stopping, self._first = Event(), Event()
        self._latest = Snapshot(taken_at=time.monotonic())
        with self._lock:
            self._start_thread()
        while not self._first.wait(_MAX_READ_SECONDS):
            self._replace_blocked_thread()
        self._watcher = Thread(target=self._watch, name="telemetry-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Wait for the threads to end, but not for a reader. Does nothing when not running."""
        self._stopping.set()
        for thread in (self._watcher, self._thread):
            if thread is not None:
                thread.join(_STOP_SECONDS)
        self._thread = self._watcher = None

    def _start_thread(self) -> None:
        """Start a thread that calls the readers and publishes snapshots."""
        self._thread = Thread(
            target=self._run, args=(self._stopping,), name="telemetry", daemon=True
        )
        self._thread.start()

    def _run(self, stopping: Event) -> None:
        while True:
            snapshot = self._sample()
            if snapshot is None:
                return
            self._latest = snapshot
            self._first.set()
            if stopping.wait(self._period):
                return

    def _watch(self) -> None:
        while not self._stopping.wait(_MAX_READ_SECONDS / 2):
            self._replace_blocked_thread()

    def _replace_blocked_thread(self) -> None:
        """If the current reader takes too long, leave its thread to it and start another."""
        with self._lock:
            if self._reading is None or self._stopping.is_set():
                return
            reader, since = self._reading
            if time.monotonic() - since < _MAX_READ_SECONDS:
                return
            self._reading = None
            self._blocked[reader] = since
            self._start_thread()
        logger.warning("%s blocks; its readings are missing until it is back", _name(reader))

    def _sample(self) -> Snapshot | None:
        """Return all readings; None if this thread was left to a reader that blocked."""
        taken_at = time.monotonic()
        readings: dict[str, Any] = {}
        for reader in self._readers:
            with self._lock:
                since = self._blocked.get(reader)
                self._reading = None if since is not None else (reader, time.monotonic())
            if since is not None:
                readings.update(_missing(reader, f"no answer for {time.monotonic() - since:.0f} s"))
                continue
            readings.update(self._read(reader))
            with self._lock:
                if threading.current_thread() is not self._thread:
                    if self._blocked.pop(reader, None) is not None:
                        logger.warning("%s is back", _name(reader))
                    return None
                self._reading = None
        return Snapshot(taken_at, **readings)

    def _read(self, reader: Reader) -> Readings:
        try:
            values = reader.read()
            if unknown := values.keys() - _FIELDS:
                raise TypeError(f"there are no readings called {', '.join(sorted(unknown))}")
            return values
        # Whatever a driver or a file does, the other readings must go on.
        except Exception as error:
            if reader not in self._reported:
                self._reported.add(reader)
                logger.warning("%s failed; its readings are missing", _name(reader), exc_info=error)
            return _missing(reader, f"{type(error).__name__}: {error}")


def _missing(reader: Reader, reason: str) -> Readings:
    return dict.fromkeys(reader.fields, missing(_name(reader), reason))


def _name(reader: Reader) -> str:
    return type(reader).__name__


def default_sampler(root: Path = Path("/"), period_seconds: float = 0.5) -> Sampler:
    """Return a sampler of all readers. `root` is the folder that holds /proc and /sys."""
    return Sampler(
        HostReader(root),
        CapacityReader(root),
        DiskReader(root),
        PressureReader(root),
        ThermalReader(root),
        BatteryReader(root),
        EnergyReader(root),
        GpuReader(),
        period_seconds=period_seconds,
    )
