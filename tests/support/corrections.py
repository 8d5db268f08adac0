"""Random corrections of tiny variants, of every kind that a decoder must apply."""

import torch

from pruners.architecture import Shape
from pruners.correction import (
    Correction,
    InputCorrection,
    LowRankCorrection,
    RefitCorrection,
    constant_correction,
)
from pruners.variant import Block, VariantSpec, base_spec

KINDS = {
    "narrow": "rank",
    "narrower": "bias",
    "own": "materialised",
    "trained": "trained",
    "norms": "norms",
}
"""The kind of correction that each variant of `specs_of` gets, by the variant's name."""


def specs_of(shape: Shape) -> dict[str, VariantSpec]:
    """Return variants of a tiny model by name: the base, and widths that differ by layer."""
    full = shape.kv_groups
    part = 1 if shape.cuts_groups else full
    found = [
        base_spec(shape),
        VariantSpec("narrow", (part, full, part), (32, 64, 96)),
        VariantSpec("narrower", (part, part, 0), (32, 32, 64)),
        VariantSpec("plain", (full, full, full), (64, 64, 64)),
        VariantSpec("own", (full, part, full), (64, 96, 0)),
        VariantSpec("trained", (part, full, part), (96, 40, 64)),
        VariantSpec("norms", (full, 0, part), (0, 96, 80)),
    ]
    return {spec.name: spec for spec in found}


def corrections_of(
    spec: VariantSpec, shape: Shape, kind: str, seed: int
) -> dict[Block, Correction]:
    """Return random corrections of `kind` for every block of a variant, skipped blocks too."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return 0.1 * torch.randn(size, generator=generator)

    found: dict[Block, Correction] = {}
    for layer in range(shape.layers):
        queries = spec.kv_groups[layer] * shape.queries_per_group * shape.head_dim
        for block, width in (
            (Block(layer, "attention"), queries),
            (Block(layer, "mlp"), spec.ffn[layer]),
        ):
            if width == 0:
                found[block] = constant_correction(draw(shape.hidden))
            elif kind == "materialised":
                found[block] = RefitCorrection(draw(shape.hidden), draw(shape.hidden, width))
            else:
                rank = {"rank": 4, "bias": 0, "trained": 5, "norms": 0}[kind]
                up, down = draw(shape.hidden, rank), draw(rank, width)
                entry = None
                if kind in ("trained", "norms"):
                    per_group = (shape.queries_per_group + 2) * shape.head_dim
                    features = (
                        spec.kv_groups[layer] * per_group
                        if block.part == "attention"
                        else 2 * width
                    )
                    inner = draw(features, rank), draw(rank, shape.hidden)
                    entry = InputCorrection(1 + draw(shape.hidden), *inner)
                found[block] = LowRankCorrection(draw(shape.hidden), up, down, entry)
    return found


def corrections_by_name(
    specs: dict[str, VariantSpec], shape: Shape
) -> dict[str, dict[Block, Correction]]:
    """Return one variant's corrections for each kind, by the variant's name."""
    return {
        name: corrections_of(specs[name], shape, kind, seed)
        for seed, (name, kind) in enumerate(KINDS.items(), start=1)
    }
