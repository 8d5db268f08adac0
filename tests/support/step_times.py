"""A small model's shape, a machine whose step times are known exactly, and a model fitted to it."""

from collections.abc import Sequence

from controller import StepRecord, StepTimeModel
from controller.engine_status import StepPart
from pruners.architecture import Shape
from pruners.variant import base_spec, depth_spec, width_spec

SHAPE = Shape(layers=12, hidden=256, heads=8, kv_groups=4, head_dim=32, ffn=1024, vocab=8000)
BASE, HALF, SHALLOW = base_spec(SHAPE), width_spec(SHAPE, 0.5), depth_spec(SHAPE, [3, 4, 5])
HEAD = 256 * 8000
BODY = {
    spec: sum(spec.kv_groups) * (256 * 32 * (2 * 2 + 2)) + 3 * 256 * sum(spec.ffn)
    for spec in (BASE, HALF, SHALLOW)
}


def measured_step(
    rows: Sequence[StepPart],
    sampled: int,
    fixed: float = 0.002,
    stream: float = 1e-10,
    work: float = 4e-11,
    read: float = 5e-10,
) -> StepRecord:
    """Return a step of a machine that streams the widest row's weights once and multiplies for
    every token.

    Reading keys and values takes it five times as long as reading weights, number by number.
    """
    present = {variant for variant, _, _ in rows}
    both = present == {HALF, SHALLOW}
    # Half the neurons in every layer, or all of them in nine: the union is the whole model, but
    # for the neurons of the three layers that only the narrow variant has.
    union = max(BODY[v] for v in present) + (3 * (256 * 32 * 6 * 4 + 3 * 256 * 512) if both else 0)
    streamed = union + HEAD
    multiplied = sum(tokens * BODY[v] for v, tokens, _ in rows) + sampled * HEAD
    cached = sum(attended * 2 * 32 * sum(v.kv_groups) for v, _, attended in rows)
    seconds = fixed + stream * streamed + work * multiplied + read * cached
    return StepRecord(seconds, tuple(rows), sampled)


def fitted_model() -> StepTimeModel:
    """Return a step-time model that was fitted to this machine."""
    model = StepTimeModel(SHAPE)
    model.fit(
        [
            measured_step([(v, n, cached)], s)
            for v in (BASE, HALF)
            for n, s, cached in ((1, 1, 0), (4, 4, 4000), (8, 8, 0), (32, 1, 0), (128, 4, 0))
        ]
    )
    return model
