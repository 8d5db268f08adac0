"""Seconds of a decode step, predicted from what one block of each width was measured to take."""

from collections.abc import Mapping
from dataclasses import dataclass

from pruners.variant import PARTS, Part, VariantSpec


@dataclass(frozen=True, slots=True)
class Latency:
    """A budget in time, on the device it was measured on.

    `blocks` are seconds by part and width, 0 among the widths; `rest` is what every variant takes.
    Widths between two measured ones lie on the line between them; a narrower block is never taken
    to be slower, whatever a noisy clock said.
    """

    rest: float
    blocks: Mapping[Part, Mapping[int, float]]

    def __call__(self, spec: VariantSpec) -> float:
        """Seconds that a step of this variant should take."""
        widths: Mapping[Part, tuple[int, ...]] = {"attention": spec.kv_groups, "mlp": spec.ffn}
        return self.rest + sum(self._block(part, w) for part in PARTS for w in widths[part])

    def _block(self, part: Part, width: int) -> float:
        seconds = self.blocks[part]

        def at_least(known: int) -> float:
            return max(s for w, s in seconds.items() if w <= known)

        lower = max(w for w in seconds if w <= width)
        upper = min(w for w in seconds if w >= width)
        share = 0.0 if upper == lower else (width - lower) / (upper - lower)
        return at_least(lower) + share * (at_least(upper) - at_least(lower))
