"""Seconds of a decode step, predicted from measured times of single blocks."""

from collections.abc import Mapping
from dataclasses import dataclass

from pruners.variant import PARTS, Part, VariantSpec


@dataclass(frozen=True, slots=True)
class LatencyCost:
    """A cost function in seconds, for the device that the blocks were timed on.

    `blocks[part][width]` are seconds of one block, width 0 among them; `rest` are the seconds that
    every variant takes. A width between two measured ones gets the linear interpolation. A
    narrower block never counts as slower than a wider one, even if noise measured it so.
    """

    rest: float
    blocks: Mapping[Part, Mapping[int, float]]

    def __call__(self, spec: VariantSpec) -> float:
        """Return the predicted seconds of one decode step of a variant."""
        widths: Mapping[Part, tuple[int, ...]] = {"attention": spec.kv_groups, "mlp": spec.ffn}
        return self.rest + sum(
            self._block_seconds(part, width) for part in PARTS for width in widths[part]
        )

    def _block_seconds(self, part: Part, width: int) -> float:
        seconds = self.blocks[part]

        def running_maximum(known: int) -> float:
            return max(s for w, s in seconds.items() if w <= known)

        lower = max(w for w in seconds if w <= width)
        upper = min(w for w in seconds if w >= width)
        share = 0.0 if upper == lower else (width - lower) / (upper - lower)
        at_lower, at_upper = running_maximum(lower), running_maximum(upper)
        return at_lower + share * (at_upper - at_lower)
