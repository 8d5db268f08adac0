"""What is learned of a model, in which order, and what is done already.

The cheapest gain comes first. Each stage ends in an artefact that can be served.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pruners.architecture import Shape
from pruners.artefact.folder import Artefact
from pruners.variant import base_spec
from server.learning.order import LearningPrecision

LEARNED = "learned"
"""The entry of an artefact's provenance that names the finished stages."""


class Stage(NamedTuple):
    """A stage by its name, what people are told of it, and the memory that it needs beside weights.

    `matrices` are how many square matrices of the widest input of a projection, in fp64.
    """

    name: str
    title: str
    matrices: int = 0


STAGES = (
    Stage("reading", "first reading depth"),
    Stage("budgets", "losses of KV budgets"),
    Stage("readers", "further reading depths"),
    Stage("depth", "depth cuts", 4),
    Stage("widths", "width cuts", 24),
)
_OVERHEAD_BYTES = 900 * 10**6  # the interpreter, PyTorch, and what one batch takes
_WEIGHT_BYTES: dict[LearningPrecision, int] = {"fp32": 4, "bf16": 2}
_SAMPLED_TOKENS = 20_000  # whose keys and values are kept while text is sampled
_CACHED_BYTES = 2  # of a number in the KV cache
_FP32_SHARE = 0.6  # of all memory that the worker may need with weights in fp32


def finished(artefact: Artefact | None) -> tuple[str, ...]:
    """Return the names of the stages that an artefact has; all, if it was not made by learning."""
    if artefact is None:
        return ()
    noted = artefact.provenance.get(LEARNED)
    if not isinstance(noted, dict):
        return tuple(stage.name for stage in STAGES)
    stages = noted.get("stages")
    return tuple(map(str, stages)) if isinstance(stages, list) else ()


def with_finished(artefact: Artefact, name: str) -> Artefact:
    """Return the artefact with one more finished stage in its provenance."""
    done = [*finished(artefact), name] if LEARNED in artefact.provenance else [name]
    return replace(artefact, provenance={**artefact.provenance, LEARNED: {"stages": done}})


def open_stages(artefact: Artefact | None) -> list[Stage]:
    """Return the stages that an artefact does not have, the next one first."""
    done = finished(artefact)
    return [stage for stage in STAGES if stage.name not in done]


def precision_for(shape: Shape, total_bytes: float | None) -> LearningPrecision:
    """Return in which precision a machine with so much memory learns of a model: fp32 if it can."""
    needed = needed_bytes(shape, STAGES[0], "fp32")
    return "fp32" if total_bytes is None or needed <= _FP32_SHARE * total_bytes else "bf16"


def needed_bytes(shape: Shape, stage: Stage, precision: LearningPrecision) -> int:
    """Return about how much memory a stage takes for a model of this shape."""
    weights = base_spec(shape).parameters(shape) + shape.vocab * shape.hidden
    widest = max(shape.ffn, shape.heads * shape.head_dim)
    cached = _SAMPLED_TOKENS * base_spec(shape).kv_elements(shape) * _CACHED_BYTES
    fixed = weights * _WEIGHT_BYTES[precision] + cached + _OVERHEAD_BYTES
    return fixed + stage.matrices * 8 * widest**2


def describe_stages(done: Sequence[str], current: str | None) -> list[dict[str, Any]]:
    """Return each stage's name, title and whether it is `done`, `now` or `later`, for JSON."""
    return [
        {
            "name": stage.name,
            "title": stage.title,
            "state": "done" if stage.name in done else "now" if stage.name == current else "later",
        }
        for stage in STAGES
    ]
