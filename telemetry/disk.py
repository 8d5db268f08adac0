"""The free space of the disk. A reader of its own, since a dead mount blocks the caller."""

from pathlib import Path
from typing import ClassVar

import psutil

from telemetry.snapshot import Reading, present


class DiskReader:
    """Reads `disk_free_bytes` of the file system that holds `root`."""

    fields: ClassVar[tuple[str, ...]] = ("disk_free_bytes",)

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = str(root)

    def read(self) -> dict[str, Reading]:
        """Return the readings. See `Reader`."""
        return {"disk_free_bytes": present(psutil.disk_usage(self._root).free, "psutil")}
