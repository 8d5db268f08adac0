"""One variant in training, with all that its next step depends on."""

from dataclasses import dataclass, field

import torch

from pruners.distill.student import Student


@dataclass(slots=True)
class TrainedStudent:
    """A student with its optimizer, its best state so far and its held-out KL at each check.

    `best` are the tensors of `model` by name; `history` is in nats per token, its first element
    from before any step.
    """

    name: str
    model: Student
    optimizer: torch.optim.AdamW
    best: dict[str, torch.Tensor]
    history: list[float] = field(default_factory=list)

    def checks_since_best(self) -> int:
        """Return how many checks were made after the best one."""
        return len(self.history) - 1 - min(range(len(self.history)), key=self.history.__getitem__)


def copy_state(model: Student) -> dict[str, torch.Tensor]:
    """Return copies of the model's tensors by name, which further training does not change."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
