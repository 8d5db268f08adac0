"""What the sampler asks of every source of readings."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from telemetry.snapshot import GpuReadings, Reading

Readings = Mapping[str, Reading | tuple[GpuReadings, ...]]


class Reader(Protocol):
    """Fills some fields of a `Snapshot`.

    `fields` names the readings it is responsible for: they are marked missing if `read` raises.
    """

    fields: ClassVar[tuple[str, ...]]

    def read(self) -> Readings:
        """Measure now. What cannot be measured is a missing reading, not an exception."""
        ...
