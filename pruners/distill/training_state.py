"""The state of a training in one file: tensors, and a JSON note in the header.

The file is written under a temporary name and renamed.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pruners.distill.trained_student import TrainedStudent
from pruners.support.files import replace_file

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def write_state(path: Path, step: int, students: Sequence[TrainedStudent]) -> None:
    """Write everything that the steps from `step` on depend on."""
    tensors = {
        f"{student.name}/{name}": tensor.detach().cpu().contiguous()
        for student in students
        for name, tensor in _tensors(student)
    }
    note = {"step": step, "history": {student.name: student.history for student in students}}
    replace_file(path, lambda staged: save_file(tensors, staged, {"training": json.dumps(note)}))


def read_state(path: Path, students: Sequence[TrainedStudent]) -> int:
    """Load students from a file and return the next step; without a usable file return 0."""
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads(file.metadata()["training"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (FileNotFoundError, SafetensorError, KeyError, ValueError, TypeError, OSError):
        return 0
    for student in students:
        student.history[:] = note["history"][student.name]
        prefix = f"{student.name}/"
        named = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        student.model.load_state_dict(_under("now.", named))
        device = next(student.model.parameters()).device
        student.best = {name: t.to(device) for name, t in _under("best.", named).items()}
        for number, parameter in enumerate(_parameters(student)):
            moments = {name: named.get(f"{name}.{number}") for name in _MOMENTS}
            if moments["step"] is not None:
                student.optimizer.state[parameter] = {
                    name: moment.to(device if moment.dim() else "cpu")
                    for name, moment in moments.items()
                    if moment is not None
                }
    return int(note["step"])


def _tensors(student: TrainedStudent) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in student.model.state_dict().items():
        yield f"now.{name}", tensor
    for name, tensor in student.best.items():
        yield f"best.{name}", tensor
    for number, parameter in enumerate(_parameters(student)):
        for name, moment in student.optimizer.state.get(parameter, {}).items():
            yield f"{name}.{number}", moment


def _parameters(student: TrainedStudent) -> list[torch.nn.Parameter]:
    return [p for group in student.optimizer.param_groups for p in group["params"]]


def _under(prefix: str, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): t for k, t in named.items() if k.startswith(prefix)}
