"""One variant in training, with all that its next step depends on."""

from dataclasses import dataclass, field

import torch

from pruners.distill.student import Student


@dataclass(slots=True)
class Learner:
    """A student with its optimizer, its best state so far and its held-out KL at each check."""

    name: str
    student: Student
    optimizer: torch.optim.AdamW
    best: dict[str, torch.Tensor]
    history: list[float] = field(default_factory=list)

    def since_best(self) -> int:
        """Checks since the best one."""
        return len(self.history) - 1 - min(range(len(self.history)), key=self.history.__getitem__)


def copied(student: Student) -> dict[str, torch.Tensor]:
    """Its state, apart from what training does next."""
    return {name: tensor.detach().clone() for name, tensor in student.state_dict().items()}
