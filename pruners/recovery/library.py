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
from pruners.recovery.recover import Bought, Recipe, recover
from pruners.variant import Block, VariantSpec


@dataclass(frozen=True, slots=True)
class Library:
    """Corrections by block and width, and what each step of them bought.

    They are fitted to the base's own activations, so that one serves every variant that has its
    block so wide.
    """

    corrections: dict[tuple[Block, int], Correction]
    bought: list[Bought] = field(default_factory=list)

    def of(self, spec: VariantSpec) -> dict[Block, Correction]:
        """Those of a variant."""
        return {
            block: correction
            for (block, width), correction in self.corrections.items()
            if spec.width(block) == width
        }

    def parameters(self, spec: VariantSpec) -> int:
        """How many numbers `of(spec)` holds."""
        return sum(t.numel() for c in self.of(spec).values() for t in c.tensors())

    def summary(self) -> list[dict[str, float | str | int]]:
        """Held-out relative output errors of each part at each width, the mean over layers."""
        groups: dict[tuple[str, int], list[Bought]] = defaultdict(list)
        for one in self.bought:
            groups[one.block.part, one.kept].append(one)
        return [
            {
                "part": part,
                "inputs": kept,
                **{
                    step: round(mean(getattr(one, step) for one in group), 5)
                    for step in ("none", "bias", "low_rank", "refit")
                },
            }
            for (part, kept), group in groups.items()
        ]

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Named by width and block, for a checkpoint; what was bought is not among them."""
        return {
            f"{width}/{name}": tensor
            for (block, width), correction in self.corrections.items()
            for name, tensor in to_tensors({block: correction}).items()
        }


def library_from(tensors: Mapping[str, torch.Tensor], bought: Sequence[Bought] = ()) -> Library:
    """Reads what `to_tensors` gave."""
    groups: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
    for key, tensor in tensors.items():
        width, _, name = key.partition("/")
        groups[int(width)][name] = tensor
    return Library(
        {
            (block, width): correction
            for width, named in groups.items()
            for block, correction in from_tensors(named).items()
        },
        list(bought),
    )


def make_library(
    located: LocatedModel,
    order: Order,
    rows: Sequence[torch.Tensor],
    kv_widths: Sequence[int],
    ffn_widths: Sequence[int],
    rank: int,
    progress: Progress | None = None,
) -> Library:
    """Fits every block at each of these widths; full ones need nothing. Raises `RecoveryError`."""
    shape = located.shape
    # One uniform variant a pair of widths: what is recovered of a block depends on nothing else.
    pairs = zip_longest(kv_widths, ffn_widths)
    specs = [
        VariantSpec(
            f"level-{number}",
            (shape.kv_groups if kv is None else kv,) * shape.layers,
            (shape.ffn if ffn is None else ffn,) * shape.layers,
        )
        for number, (kv, ffn) in enumerate(pairs)
    ]
    library = Library({})
    for spec, found in zip(
        specs, recover(located, specs, order, rows, Recipe(rank), progress), strict=True
    ):
        for block, correction in found.corrections.items():
            library.corrections[block, spec.width(block)] = correction
        library.bought.extend(found.bought)
    return library
