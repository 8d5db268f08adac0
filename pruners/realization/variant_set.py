"""Variants of one base, with what they need to be realized."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruners.correction import Correction
from pruners.realization.order import Order
from pruners.variant import Block, VariantSpec


@dataclass(frozen=True, slots=True)
class VariantSet:
    """Variants that share one order of units.

    `specs` give the widths, as prefixes of `order`; `corrections` are by variant name, and a
    variant without any has no entry.
    """

    order: Order
    specs: Sequence[VariantSpec]
    corrections: Mapping[str, Mapping[Block, Correction]]

    def corrections_of(self, spec: VariantSpec) -> Mapping[Block, Correction]:
        """Return the corrections of one variant, empty if it has none."""
        return self.corrections.get(spec.name, {})
