"""What the process and the GPU held at moments worth noting."""

import resource
import sys

import psutil  # type: ignore[import-untyped]
import torch

_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss


class MemoryLog:
    """Bytes resident by name of the moment, in the order they were noted."""

    def __init__(self) -> None:
        self._noted: dict[str, int] = {}

    def note(self, moment: str) -> None:
        """Reads the process, and the GPU if there is one, now."""
        self._noted[moment] = psutil.Process().memory_info().rss
        if torch.cuda.is_available():
            self._noted[f"{moment}, GPU"] = torch.cuda.memory_allocated()

    def readings(self) -> dict[str, int]:
        """Everything noted, and the peaks since the process began."""
        peaks = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT}
        if torch.cuda.is_available():
            peaks["peak, GPU"] = torch.cuda.max_memory_allocated()
        return {**self._noted, **peaks}
