"""A training that was interrupted: rounds done, rewards so far and the trainer's state."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from policies.training.trainer import Tensors
from pruners.errors import UserError
from pruners.files import replaced


class CheckpointError(UserError):
    """A checkpoint that cannot be gone on from. One clear line."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a training goes on from. `identity` says what was being trained, on what and how."""

    identity: str
    rounds: int
    rewards: list[float]
    state: Tensors

    def save(self, path: Path) -> None:
        """Writes the file under a temporary name and renames it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"identity": self.identity, "rounds": self.rounds, "rewards": self.rewards}
        replaced(path, lambda it: save_file(self.state, it, {"about": json.dumps(about)}))


def load_checkpoint(path: Path, identity: str) -> Checkpoint | None:
    """The training's own, if there is one. Raises `CheckpointError` for another's."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["about"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = Checkpoint(about["identity"], about["rounds"], about["rewards"], state)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}; delete it to start anew") from error
    if found.identity != identity:
        raise CheckpointError(f"{path} is of another training; delete it to start anew")
    return found
