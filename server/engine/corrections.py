"""What a variant has of its own beside the shared weights, ready to be applied in a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pruners.recovery import Correction, Materialised
from pruners.variant import Block
from server.engine.linear import DenseLinear
from server.engine.weights import BaseWeights


@dataclass(frozen=True, slots=True)
class Own:
    """The own part of one `o` or `down`: `outer(inner(inputs))`, or `bias` alone.

    `replaces` says that it stands in the place of the shared columns, not beside them.
    """

    inner: DenseLinear | None = None
    outer: DenseLinear | None = None
    bias: Tensor | None = None
    replaces: bool = False

    def partial(self, inputs: Tensor, low: int, high: int) -> Tensor | None:
        """What inputs `low..high` add to the inner product."""
        return None if self.inner is None else self.inner.inputs(low, high)(inputs)

    def finish(self, inner: Tensor | None, rows: int) -> Tensor:
        """What to add to the output, `[rows, out]`, given the whole inner product."""
        if inner is None:
            assert self.bias is not None
            return self.bias.expand(rows, -1)
        return inner if self.outer is None else self.outer(inner)

    def tensors(self) -> list[Tensor]:
        """Every resident tensor of it."""
        parts = [part for part in (self.inner, self.outer) if part is not None]
        bias = [] if self.bias is None else [self.bias]
        return [*bias, *(tensor for part in parts for tensor in part.tensors())]


OwnParts = dict[Block, dict[str, Own]]
"""By block, then by the variant's name."""


def own_parts(
    weights: BaseWeights, corrections: Mapping[str, Mapping[Block, Correction]]
) -> OwnParts:
    """Corrections by variant, in the engine's precision and on its device.

    One that variants share is resident once.
    """
    found: OwnParts = {}
    ready: dict[int, Own] = {}
    for variant, blocks in corrections.items():
        for block, correction in blocks.items():
            layer = weights.layers[block.layer]
            shared = layer.o if block.part == "attention" else layer.down
            if id(correction) not in ready:
                ready[id(correction)] = _own(correction, shared, weights)
            found.setdefault(block, {})[variant] = ready[id(correction)]
    return found


def _own(correction: Correction, shared: DenseLinear, weights: BaseWeights) -> Own:
    def ready(tensor: Tensor) -> Tensor:
        return tensor.to(device=weights.device, dtype=weights.dtype).contiguous()

    bias = ready(correction.bias)
    if isinstance(correction, Materialised):
        if shared.bias is not None:
            bias = bias + shared.bias
        return Own(inner=DenseLinear(ready(correction.weight), bias), replaces=True)
    if correction.rank == 0:
        return Own(bias=bias)
    inner, outer = DenseLinear(ready(correction.down)), DenseLinear(ready(correction.up), bias)
    return Own(inner=inner, outer=outer)
