"""Corrections of every block at every width that variants are made of, from one pass."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from statistics import mean

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.correction import Correction, from_tensors, to_tensors
from pruners.realization.order import Order
from pruners.recovery.recover import FitErrors, RecoveryOptions, recover
from pruners.variant import Block, Part, VariantSpec


@dataclass(frozen=True, slots=True)
class CorrectionLibrary:
    """Corrections by block and width, and the errors of each narrowed block.

    They are fitted to the base's own activations, so that one correction serves every variant that
    has its block at its width.
    """

    corrections: dict[tuple[Block, int], Correction] = field(default_factory=dict)
    errors: list[FitErrors] = field(default_factory=list)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> "CorrectionLibrary":
        """Return the library that `to_tensors` was called on, without its errors."""
        groups: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for key, tensor in tensors.items():
            width, _, name = key.partition("/")
            groups[int(width)][name] = tensor
        return cls(
            {
                (block, width): correction
                for width, named in groups.items()
                for block, correction in from_tensors(named).items()
            }
        )

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Return all tensors, named `width/layer.part.tensor`; errors are not among them."""
        return {
            f"{width}/{name}": tensor
            for (block, width), correction in self.corrections.items()
            for name, tensor in to_tensors({block: correction}).items()
        }

    def of(self, spec: VariantSpec) -> dict[Block, Correction]:
        """Return the corrections of a variant."""
        return {
            block: correction
            for (block, width), correction in self.corrections.items()
            if spec.width(block) == width
        }

    def biases_of_skipped(self) -> dict[Block, torch.Tensor]:
        """Return, for each block, what it adds on average, `[hidden]`, to stand in its place."""
        return {block: c.bias for (block, width), c in self.corrections.items() if width == 0}

    def parameters(self, spec: VariantSpec) -> int:
        """Return how many numbers the corrections of a variant hold."""
        return sum(t.numel() for c in self.of(spec).values() for t in c.tensors())

    def mean_errors(self) -> list[dict[str, float | str | int]]:
        """Return the errors of each part at each number of inputs, the mean over layers."""
        groups: dict[tuple[str, int], list[FitErrors]] = defaultdict(list)
        for one in self.errors:
            groups[one.block.part, one.inputs].append(one)
        return [
            {
                "part": part,
                "inputs": inputs,
                **{
                    step: round(mean(getattr(one, step) for one in group), 5)
                    for step in ("none", "bias", "low_rank", "refit")
                },
            }
            for (part, inputs), group in groups.items()
        ]


def fit_library(
    located: LocatedModel,
    order: Order,
    rows: Sequence[torch.Tensor],
    widths: Mapping[Part, Sequence[int]],
    rank: int,
    progress: Progress | None = None,
) -> CorrectionLibrary:
    """Return corrections of every block at each of the `widths` of its part, below the full one.

    `rows` are 1-D token ids, ragged. Raises `RecoveryError` for fewer than two rows.
    """
    shape = located.shape
    # One uniform variant for each pair of widths: a block's correction depends on its own alone.
    pairs = zip_longest(widths["attention"], widths["mlp"])
    specs = [
        VariantSpec(
            f"level-{number}",
            (shape.kv_groups if kv is None else kv,) * shape.layers,
            (shape.ffn if ffn is None else ffn,) * shape.layers,
        )
        for number, (kv, ffn) in enumerate(pairs)
    ]
    library = CorrectionLibrary()
    results = recover(located, specs, order, rows, RecoveryOptions(rank), progress)
    for spec, result in zip(specs, results, strict=True):
        for block, correction in result.corrections.items():
            library.corrections[block, spec.width(block)] = correction
        library.errors.extend(result.errors)
    return library
