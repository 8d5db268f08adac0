"""slim-model: attention that looks everywhere says little."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.calibration.collectors import HeadEntropy, InputMoments, down_projection
from pruners.calibration.statistics import collect_by_layer
from pruners.importance.base import (
    ImportanceScores,
    input_column_norms,
    stack_scores,
    sum_per_group,
)


class AttentionEntropy:
    """`1 - H / log(keys)`, the mean over a group's heads: flat attention goes first.

    The entropy criterion of slim-model, normalised by the number of keys, without which it ranks
    prompts by their length; this is also its KL to uniform attention, normalised alike. Entropy
    says nothing of neurons: they are scored as by `ActivationNorm`.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        shape = located.shape

        def watch(_: int) -> tuple[InputMoments, HeadEntropy]:
            return InputMoments(shape.ffn, down_projection), HeadEntropy(shape)

        with eager_attention(located):
            seen = [pair for _, pair in collect_by_layer(located, rows, watch, progress=progress)]
        return stack_scores(
            [
                neurons.second_moment.sqrt() * input_column_norms(layer.mlp.down)
                for layer, (neurons, _) in zip(located.layers, seen, strict=True)
            ],
            [
                sum_per_group(1 - entropy.heads, shape) / shape.queries_per_group
                for _, entropy in seen
            ],
        )


@contextmanager
def eager_attention(located: LocatedModel) -> Iterator[None]:
    """The model's attention returns its weights while the context is open."""
    before = located.model.config._attn_implementation
    located.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        located.model.set_attn_implementation(before)
