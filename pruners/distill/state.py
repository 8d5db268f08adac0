"""A training in one file, written whole or not at all: tensors, and a JSON note in its header."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pruners.distill.learner import Learner
from pruners.support.files import replace_file

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def write_state(path: Path, step: int, learners: Sequence[Learner]) -> None:
    """Everything that steps from `step` on depend on."""
    tensors = {
        f"{learner.name}/{name}": tensor.detach().cpu().contiguous()
        for learner in learners
        for name, tensor in _tensors(learner)
    }
    note = {"step": step, "history": {learner.name: learner.history for learner in learners}}
    replace_file(path, lambda staged: save_file(tensors, staged, {"training": json.dumps(note)}))


def read_state(path: Path, learners: Sequence[Learner]) -> int:
    """Puts learners where they were, and says after how many steps; 0 without a usable file."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["training"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError, OSError):
        return 0
    for learner in learners:
        learner.history[:] = note["history"][learner.name]
        prefix = f"{learner.name}/"
        named = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        learner.student.load_state_dict(_under("now.", named))
        device = next(learner.student.parameters()).device
        learner.best = {name: t.to(device) for name, t in _under("best.", named).items()}
        for number, parameter in enumerate(_parameters(learner)):
            moments = {name: named.get(f"{name}.{number}") for name in _MOMENTS}
            if moments["step"] is not None:
                learner.optimizer.state[parameter] = {
                    name: moment.to(device if moment.dim() else "cpu")
                    for name, moment in moments.items()
                    if moment is not None
                }
    return int(note["step"])


def _tensors(learner: Learner) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in learner.student.state_dict().items():
        yield f"now.{name}", tensor
    for name, tensor in learner.best.items():
        yield f"best.{name}", tensor
    for number, parameter in enumerate(_parameters(learner)):
        for name, moment in learner.optimizer.state.get(parameter, {}).items():
            yield f"{name}.{number}", moment


def _parameters(learner: Learner) -> list[torch.nn.Parameter]:
    return [p for group in learner.optimizer.param_groups for p in group["params"]]


def _under(prefix: str, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in named.items() if k.startswith(prefix)}
