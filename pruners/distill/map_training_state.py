"""The state of an interrupted training of maps in one file: their change and Adam's moments."""

import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pruners.support.files import replace_file

_SAVE_SECONDS = 120.0


class MapTrainingState:
    """Reads and writes the state of the training that `identity` names; nothing without a path.

    The file is written under a temporary name and renamed.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self._path = path
        self._identity = identity
        self._saved = time.monotonic()

    def read(self, change: nn.Parameter, optimizer: torch.optim.Optimizer) -> int:
        """Set both as they were and return how many steps are done; 0 without a usable file."""
        if self._path is None:
            return 0
        try:
            with safe_open(self._path, framework="pt") as file:
                note = file.metadata()
                if note["identity"] != self._identity:
                    return 0
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return 0
        with torch.no_grad():
            change.copy_(tensors.pop("change"))
        device = change.device
        optimizer.state[change] = {
            name: tensor.to(device if tensor.dim() else "cpu") for name, tensor in tensors.items()
        }
        return int(note["steps"])

    def write_sometimes(
        self, steps: int, change: nn.Parameter, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write the state if that was long ago."""
        path = self._path
        if path is None or time.monotonic() - self._saved < _SAVE_SECONDS:
            return
        tensors = {"change": change.detach(), **optimizer.state[change]}
        note = {"identity": self._identity, "steps": str(steps)}
        replace_file(path, lambda staged: save_file(tensors, staged, note))
        self._saved = time.monotonic()
