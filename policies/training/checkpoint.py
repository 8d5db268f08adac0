"""A training that was interrupted: rounds done, rewards so far and the trainer's state."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from policies.training.trainer import Tensors
from pruners.support.errors import UserError
from pruners.support.files import replace_file


class CheckpointError(UserError):
    """A checkpoint that cannot be gone on from. One clear line."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a training goes on from.

    `identity` says what was being trained, on what and how; `about` says it to people.
    """

    identity: str
    about: str
    rounds: int
    rewards: list[float]
    state: Tensors

    def save(self, path: Path) -> None:
        """Writes the file under a temporary name and renames it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {name: getattr(self, name) for name in ("identity", "about", "rounds", "rewards")}
        replace_file(path, lambda it: save_file(self.state, it, {"checkpoint": json.dumps(known)}))


def load_checkpoint(path: Path, identity: str) -> Checkpoint | None:
    """The training's own, if there is one. Raises `CheckpointError` for anything else."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            known = (file.metadata() or {}).get("checkpoint")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if known is None:
            raise CheckpointError(
                f"{path} is no checkpoint of a training; name another --checkpoint"
            )
        found = _checked(json.loads(known), state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: {error}; delete it to start anew") from error
    if found.identity != identity:
        raise CheckpointError(
            f"{path} is of another training ({found.about}): go on with the same options, profile "
            "and traffic, or delete it to start anew"
        )
    return found


def _checked(known: dict[str, Any], state: Tensors) -> Checkpoint:
    """Raises `KeyError`, `TypeError` or `ValueError`."""
    found = Checkpoint(
        str(known["identity"]),
        str(known["about"]),
        int(known["rounds"]),
        [float(one) for one in known["rewards"]],
        state,
    )
    for name, values in state.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name} holds numbers that are none")
    return found
