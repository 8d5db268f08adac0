"""One thread that reads the machine at a fixed period and publishes immutable snapshots."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any

from telemetry.battery import BatteryReader
from telemetry.capacity import CapacityReader
from telemetry.energy import EnergyReader
from telemetry.gpu import GpuReader
from telemetry.host import HostReader
from telemetry.pressure import PressureReader
from telemetry.reader import Reader
from telemetry.snapshot import Snapshot, missing
from telemetry.thermal import ThermalReader

logger = logging.getLogger(__name__)


class Sampler:
    """Owns the readers: no one else may call them, since some keep their last values."""

    def __init__(self, *readers: Reader, period_seconds: float = 0.5) -> None:
        self._readers = readers
        self._period = period_seconds
        self._latest: Snapshot | None = None
        self._thread: Thread | None = None
        self._stopping = Event()
        self._reported: set[Reader] = set()

    def latest(self) -> Snapshot | None:
        """The last snapshot, or None before `start`. Costs nothing: a reference is returned."""
        return self._latest

    def start(self) -> None:
        """Take the first sample in this thread, then go on in a daemon thread.

        Does nothing while running.
        """
        if self._thread is not None:
            return
        self._stopping.clear()
        self._latest = self._sample()
        self._thread = Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Wait for the thread to end. Does nothing when it is not running."""
        if self._thread is None:
            return
        self._stopping.set()
        self._thread.join()
        self._thread = None

    def _run(self) -> None:
        while not self._stopping.wait(self._period):
            self._latest = self._sample()

    def _sample(self) -> Snapshot:
        snapshot = Snapshot(taken_at=time.monotonic())
        for reader in self._readers:
            try:
                values: dict[str, Any] = dict(reader.read())
                snapshot = replace(snapshot, **values)
            # Whatever a driver or a file does, the other readings go on.
            except Exception as error:
                values = dict.fromkeys(reader.fields, self._failed(reader, error))
                snapshot = replace(snapshot, **values)
        return snapshot

    def _failed(self, reader: Reader, error: Exception) -> Any:  # noqa: ANN401
        name = type(reader).__name__
        if reader not in self._reported:
            self._reported.add(reader)
            logger.warning("%s failed; its readings are missing", name, exc_info=error)
        return missing(name, f"{type(error).__name__}: {error}")


def default_sampler(root: Path = Path("/"), period_seconds: float = 0.5) -> Sampler:
    """A sampler of everything this package can read; `root` is where /proc and /sys are found."""
    return Sampler(
        HostReader(root),
        CapacityReader(root),
        PressureReader(root),
        ThermalReader(root),
        BatteryReader(root),
        EnergyReader(root),
        GpuReader(),
        period_seconds=period_seconds,
    )
