"""The protocol of a source of readings."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from telemetry.snapshot import GpuReadings, Reading

Readings = Mapping[str, Reading | tuple[GpuReadings, ...]]


class Reader(Protocol):
    """Fills some fields of a `Snapshot`.

    `fields` are their names. They are marked missing if `read` raises. Readers may keep state from
    one read to the next, and are only called by one thread.
    """

    fields: ClassVar[tuple[str, ...]]

    def read(self) -> Readings:
        """Measure now; return readings by field. What cannot be measured is a missing reading."""
        ...
