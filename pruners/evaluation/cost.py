"""What a variant costs, counted from its widths."""

from collections.abc import Mapping

from pruners.architecture import LocatedModel
from pruners.artefact.table import Cost
from pruners.correction import Correction
from pruners.variant import Block, VariantSpec, base_spec

CONTEXT = 1024
"""Cached tokens before the one whose arithmetic is counted."""


def compute_cost(
    spec: VariantSpec, corrections: Mapping[Block, Correction], located: LocatedModel
) -> Cost:
    """Return the cost of a variant, its corrections included.

    Arithmetic of one token: 2 operations for each matrix parameter read, and in attention 4 for
    each cached token, query head and feature of a head.
    """
    shape, base = located.shape, base_spec(located.shape)
    total = sum(parameter.numel() for parameter in located.model.parameters())
    correction = sum(t.numel() for c in corrections.values() for t in c.tensors())
    removed = base.body_parameters(shape) - spec.body_parameters(shape)
    read = spec.parameters(shape) + correction
    heads = sum(spec.kv_groups) * shape.queries_per_group
    return Cost(
        parameters=total - removed + correction,
        parameter_share=(total - removed + correction) / total,
        bytes_read=read / base.parameters(shape),
        flops=2 * read + 4 * CONTEXT * heads * shape.head_dim,
        correction_parameters=correction,
    )
