"""One thread that reads the machine at a fixed period and publishes immutable snapshots."""

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
_PATIENCE_SECONDS = 1.0  # with one reader
_STOP_SECONDS = 0.5


class Sampler:
    """Owns the readers: no one else may call them, since some keep their last values.

    A second thread watches the first. Where a reader blocks, its thread is left to it, another one
    reads the rest, and what the reader is responsible for is missing until it comes back.
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
        self._lock = Lock()  # of the two below, and of who is the reading thread
        self._reading: tuple[Reader, float] | None = None  # which, since when
        self._blocked: dict[Reader, float] = {}  # since when

    def latest(self) -> Snapshot | None:
        """The last snapshot, or None before `start`. Costs nothing: a reference is returned."""
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
            self._begin()
        while not self._first.wait(_PATIENCE_SECONDS):
            self._leave_blocked()
        self._watcher = Thread(target=self._watch, name="telemetry-watch", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Wait for the threads to end, but not for a reader. Does nothing when not running."""
        self._stopping.set()
        for thread in (self._watcher, self._thread):
            if thread is not None:
                thread.join(_STOP_SECONDS)
        self._thread = self._watcher = None

    def _begin(self) -> None:
        """Start a thread that reads, and is the one that publishes."""
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
        while not self._stopping.wait(_PATIENCE_SECONDS / 2):
            self._leave_blocked()

    def _leave_blocked(self) -> None:
        """Leave the reading thread to its reader, and start another, if it takes too long."""
        with self._lock:
            if self._reading is None or self._stopping.is_set():
                return
            reader, since = self._reading
            if time.monotonic() - since < _PATIENCE_SECONDS:
                return
            self._reading = None
            self._blocked[reader] = since
            self._begin()
        logger.warning("%s blocks; its readings are missing until it is back", _name(reader))

    def _sample(self) -> Snapshot | None:
        """What all readers say; None where this thread was left to one that blocked."""
        taken_at = time.monotonic()
        found: dict[str, Any] = {}
        for reader in self._readers:
            with self._lock:
                since = self._blocked.get(reader)
                self._reading = None if since is not None else (reader, time.monotonic())
            if since is not None:
                found.update(_missing(reader, f"no answer for {time.monotonic() - since:.0f} s"))
                continue
            found.update(self._read(reader))
            with self._lock:
                if threading.current_thread() is not self._thread:
                    if self._blocked.pop(reader, None) is not None:
                        logger.warning("%s is back", _name(reader))
                    return None
                self._reading = None
        return Snapshot(taken_at, **found)

    def _read(self, reader: Reader) -> Readings:
        try:
            values = reader.read()
            if unknown := values.keys() - _FIELDS:
                raise TypeError(f"there are no readings called {', '.join(sorted(unknown))}")
            return values
        # Whatever a driver or a file does, the other readings go on.
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
    """A sampler of everything this package can read; `root` is where /proc and /sys are found."""
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
