"""Records how much memory the process and the GPU use at named moments."""

import sys

import psutil
import torch

_MAXRSS_BYTES = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss


class MemoryLog:
    """Bytes in use by name of the moment, in the order in which they were recorded."""

    def __init__(self) -> None:
        self._recorded: dict[str, int] = {}

    def record(self, moment: str) -> None:
        """Record the memory of the process, and of the GPU if there is one."""
        self._recorded[moment] = psutil.Process().memory_info().rss
        if torch.cuda.is_available():
            self._recorded[f"{moment}, GPU"] = torch.cuda.memory_allocated()

    def readings(self) -> dict[str, int]:
        """Return everything that was recorded, and the peaks since the process began."""
        peaks = {"peak": _peak_bytes()}
        if torch.cuda.is_available():
            peaks["peak, GPU"] = torch.cuda.max_memory_allocated()
        return {**self._recorded, **peaks}


def _peak_bytes() -> int:
    """Return the most memory that the process had at any time."""
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_BYTES
