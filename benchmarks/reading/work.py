"""How much arithmetic a request takes, for reading its prompt and for writing its answer."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pruners.architecture import Shape
from pruners.variant import VariantSpec


@dataclass(frozen=True, slots=True)
class RequestWork:
    """Multiply-adds of a request: matrices, maps and attention, and the head when writing."""

    reading: float
    writing: float

    @property
    def total(self) -> float:
        """Return those of the whole request."""
        return self.reading + self.writing


def request_work(
    shape: Shape, spec: VariantSpec, runs: Tensor, visible: Tensor, answer: int
) -> RequestWork:
    """Return the work of a request whose prompt tokens do not all run through all layers.

    `runs`, bool `[layers, prompt]`, says which prompt tokens run through a layer, `visible`, of the
    same shape, which ones have keys and values in it: from a linear map where they do not run.
    `answer` is the number of written tokens, which run through all layers of `spec`.
    """
    per_group = shape.hidden * shape.head_dim * (2 * shape.queries_per_group + 2)
    per_neuron = shape.hidden * (3 if shape.gated else 2)
    groups, ffn = (
        torch.tensor(widths, dtype=torch.float64) for widths in (spec.kv_groups, spec.ffn)
    )
    matrices = groups * per_group + ffn * per_neuron  # of a token, by layer
    maps = shape.hidden * 2 * groups * shape.head_dim
    pair = 2 * groups * shape.queries_per_group * shape.head_dim
    seen = visible.double().cumsum(1)
    reading = matrices * runs.sum(1) + maps * (visible & ~runs).sum(1) + pair * (seen * runs).sum(1)
    cached = visible.sum(1)
    writing = answer * matrices + pair * (answer * cached + answer * (answer + 1) / 2)
    head = answer * shape.hidden * shape.vocab
    return RequestWork(float(reading.sum()), float(writing.sum()) + head)


def whole_work(shape: Shape, spec: VariantSpec, prompt: int, answer: int) -> RequestWork:
    """Return the work of a request whose prompt tokens all run through all layers of `spec`."""
    everything = torch.ones(shape.layers, prompt, dtype=torch.bool)
    return request_work(shape, spec, everything, everything, answer)
