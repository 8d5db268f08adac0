"""What a variant costs, counted from its widths."""

from collections.abc import Mapping

from pruners.architecture import LocatedModel
from pruners.artefact.table import Cost
from pruners.correction import Correction
from pruners.variant import Block, VariantSpec, base_spec

CONTEXT = 1024
"""Cached tokens that the arithmetic of one more is counted with."""


def cost_of(
    spec: VariantSpec, corrections: Mapping[Block, Correction], located: LocatedModel
) -> Cost:
    """The cost of a variant with what it has of its own."""
    shape, base = located.shape, base_spec(located.shape)
    total = sum(parameter.numel() for parameter in located.model.parameters())
    own = sum(t.numel() for c in corrections.values() for t in c.tensors())
    gone = base.body_parameters(shape) - spec.body_parameters(shape)
    touched = spec.parameters(shape) + own
    heads = sum(spec.kv_groups) * shape.queries_per_group
    return Cost(
        parameters=total - gone + own,
        kept=(total - gone + own) / total,
        touched=touched / base.parameters(shape),
        flops=2 * touched + 4 * CONTEXT * heads * shape.head_dim,
        own=own,
    )
