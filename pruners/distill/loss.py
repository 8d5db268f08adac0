"""KL(base || variant) over the full vocabulary, with its gradient, in bounded memory."""

from typing import Any

import torch
from torch import nn

_CHUNK_BYTES = 64 * 2**20


def log_probabilities(head: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    """Return fp32 `[positions, vocab]` for final hidden states `[positions, hidden]`."""
    with torch.no_grad():
        return head(hidden).float().log_softmax(-1)


def kl_divergence(
    head: nn.Linear,
    student: torch.Tensor,
    base: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean KL(base || student) in nats per position, an fp32 scalar.

    `student` `[positions, hidden]` are final hidden states, `base` the base's log-probabilities
    `[positions, vocab]`. With `weights` `[positions]` the mean is of KL times weight. Gradients
    reach `student` and nothing else.
    """
    if weights is None:
        weights = torch.ones(len(student), device=student.device)
    kl: torch.Tensor = _KLDivergence.apply(student, base, head, weights)
    return kl


class _KLDivergence(torch.autograd.Function):
    """Computes the gradient in the forward pass, so that no logits of the student are kept."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        student: torch.Tensor,
        base: torch.Tensor,
        head: nn.Linear,
        weights: torch.Tensor,
    ) -> torch.Tensor:
        total = student.new_zeros((), dtype=torch.float64)
        gradient = torch.empty_like(student)
        chunk = max(1, _CHUNK_BYTES // (4 * head.out_features))
        for start in range(0, len(student), chunk):
            part = slice(start, start + chunk)
            log_p = base[part]
            log_q = head(student[part]).float().log_softmax(-1)
            p = log_p.exp()
            total += (p * (log_p - log_q)).sum(-1).double() @ weights[part].double()
            log_q.exp_().sub_(p)
            gradient[part] = log_q.to(student.dtype) @ head.weight
        gradient *= (weights / len(student)).to(gradient.dtype)[:, None]
        ctx.save_for_backward(gradient)
        return (total / len(student)).float()

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:  # noqa: ANN401
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype), None, None, None
