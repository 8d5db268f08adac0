"""KL(base || variant) over the full vocabulary, with its gradient, in bounded memory."""

from typing import Any

import torch
from torch import nn

_CHUNK_BYTES = 64 * 2**20


def distribution(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Log-probabilities `[positions, vocab]` of the base, made once for all its students."""
    with torch.no_grad():
        return head(hidden).float().log_softmax(-1)


def divergence(head: nn.Linear, student: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
    """Mean KL in nats per position of `student` `[positions, hidden]`, what its head would read.

    `base` are the base's log-probabilities. Gradients reach `student` and nothing else.
    """
    found: torch.Tensor = _Divergence.apply(student, base, head)
    return found


class _Divergence(torch.autograd.Function):
    """Computes the gradient on the way: no logits of the student are kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        student: torch.Tensor,
        base: torch.Tensor,
        head: nn.Linear,
    ) -> torch.Tensor:
        total = student.new_zeros((), dtype=torch.float64)
        gradient = torch.empty_like(student)
        chunk = max(1, _CHUNK_BYTES // (4 * head.out_features))
        for start in range(0, len(student), chunk):
            part = slice(start, start + chunk)
            log_p = base[part]
            log_q = head(student[part]).float().log_softmax(-1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum(dtype=torch.float64)
            log_q.exp_().sub_(p)
            gradient[part] = log_q.to(student.dtype) @ head.weight
        gradient /= len(student)
        ctx.save_for_backward(gradient)
        return (total / len(student)).float()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None
