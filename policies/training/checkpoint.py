"""The file from which an interrupted training resumes."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from policies.training.trainer import TrainerState
from pruners.support.errors import UserError
from pruners.support.files import replace_file


class CheckpointError(UserError):
    """A checkpoint that a training cannot resume from. The message is one line."""


@dataclass(frozen=True, slots=True)
class TrainingCheckpoint:
    """The state of a training between two rounds.

    `identity` is equal for trainings that lead to the same weights, `about` describes the training
    in words. `rewards` are those of the episodes so far.
    """

    identity: str
    about: str
    rounds: int
    rewards: list[float]
    state: TrainerState

    def save(self, path: Path) -> None:
        """Write the file under a temporary name and rename it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        known = {name: getattr(self, name) for name in ("identity", "about", "rounds", "rewards")}
        replace_file(path, lambda it: save_file(self.state, it, {"checkpoint": json.dumps(known)}))


def load_checkpoint(path: Path, identity: str) -> TrainingCheckpoint | None:
    """Return the checkpoint of the training `identity`, or None if there is no file.

    Raises `CheckpointError` if the file is damaged or belongs to another training.
    """
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
        checkpoint = _checked(json.loads(known), state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged: {error}; delete it to start anew") from error
    if checkpoint.identity != identity:
        raise CheckpointError(
            f"{path} is of another training ({checkpoint.about}): go on with the same options, "
            "profile and traffic, or delete it to start anew"
        )
    return checkpoint


def _checked(known: dict[str, Any], state: TrainerState) -> TrainingCheckpoint:
    """Return the checkpoint. Raises `KeyError`, `TypeError` or `ValueError` if it is not sound."""
    checkpoint = TrainingCheckpoint(
        str(known["identity"]),
        str(known["about"]),
        int(known["rounds"]),
        [float(one) for one in known["rewards"]],
        state,
    )
    for name, values in state.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise ValueError(f"{name} holds numbers that are none")
    return checkpoint
