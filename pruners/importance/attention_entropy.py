"""The entropy of attention, as in slim-model."""

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
    """Scores a KV group by `1 - H / log(keys)`, the mean over its heads and all queries.

    `H` is the entropy in nats of a query's attention over `keys` keys, so heads that attend
    uniformly are removed first. It is the entropy criterion of the library slim-model, divided by
    its maximum so that it does not depend on the length of prompts. Neurons have no entropy; they
    are scored like `ActivationNorm`.
    """

    def __call__(
        self, located: LocatedModel, rows: Sequence[torch.Tensor], progress: Progress | None = None
    ) -> ImportanceScores:
        """Return the scores of all units."""
        shape = located.shape

        def make_collectors(_: int) -> tuple[InputMoments, HeadEntropy]:
            return InputMoments(shape.ffn, down_projection), HeadEntropy(shape)

        with eager_attention(located):
            collected = [
                pair
                for _, pair in collect_by_layer(located, rows, make_collectors, progress=progress)
            ]
        return stack_scores(
            [
                neurons.second_moment.sqrt() * input_column_norms(layer.mlp.down)
                for layer, (neurons, _) in zip(located.layers, collected, strict=True)
            ],
            [
                sum_per_group(1 - entropy.heads, shape) / shape.queries_per_group
                for _, entropy in collected
            ],
        )


@contextmanager
def eager_attention(located: LocatedModel) -> Iterator[None]:
    """Make the model's attention return its weights while the context is open."""
    previous = located.model.config._attn_implementation
    located.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        located.model.set_attn_implementation(previous)
