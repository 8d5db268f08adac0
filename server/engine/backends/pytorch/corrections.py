"""What a variant has of its own beside the shared weights, ready to be applied in a step."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pruners.correction import Correction, InputCorrection, RefitCorrection
from pruners.variant import Block
from server.engine.backends.pytorch.linear import DenseLinear
from server.engine.backends.pytorch.weights import BaseWeights


@dataclass(frozen=True, slots=True)
class OwnEntry:
    """The own part in front of a sub-block: a factor of its norm, and low ranks `outers(inner(h))`.

    One of `outers` for each input projection: of attention the fused one, of an MLP gate and up.
    """

    norm: Tensor
    inner: DenseLinear | None = None
    outers: tuple[DenseLinear, ...] = ()

    def features(self, h: Tensor, side: int, low: int, high: int) -> Tensor:
        """What to add to outputs `low..high` of input projection `side`, `[rows, high - low]`."""
        assert self.inner is not None
        return self.outers[side].outputs(low, high)(self.inner(h))

    def tensors(self) -> list[Tensor]:
        """Every resident tensor of it."""
        ranks = [] if self.inner is None else [self.inner, *self.outers]
        return [self.norm, *(tensor for part in ranks for tensor in part.tensors())]


@dataclass(frozen=True, slots=True)
class Own:
    """The own part of one `o` or `down`: `outer(inner(inputs))`, or `bias` alone.

    `replaces` says that it stands in the place of the shared columns, not beside them.
    """

    inner: DenseLinear | None = None
    outer: DenseLinear | None = None
    bias: Tensor | None = None
    replaces: bool = False
    entry: OwnEntry | None = None

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
        entry = [] if self.entry is None else self.entry.tensors()
        return [*bias, *(tensor for part in parts for tensor in part.tensors()), *entry]


OwnParts = dict[Block, dict[str, Own]]
"""By block, then by the variant's name."""


def own_parts(
    weights: BaseWeights, corrections: Mapping[str, Mapping[Block, Correction]]
) -> OwnParts:
    """Corrections by variant, in the engine's precision and on its device.

    Tensors that variants share are resident once.
    """
    found: OwnParts = {}
    ready = _Ready(weights)
    for variant, blocks in corrections.items():
        for block, correction in blocks.items():
            layer = weights.layers[block.layer]
            shared = layer.o if block.part == "attention" else layer.down
            made = _own(correction, shared, ready, sides=1 if block.part == "attention" else 2)
            found.setdefault(block, {})[variant] = made
    return found


class _Ready:
    """Tensors as the engine holds them, each once."""

    def __init__(self, weights: BaseWeights) -> None:
        self._device, self._dtype = weights.device, weights.dtype
        self._made: dict[int, Tensor] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._made:
            made = tensor.to(device=self._device, dtype=self._dtype).contiguous()
            self._made[id(tensor)] = made
        return self._made[id(tensor)]


def _own(correction: Correction, shared: DenseLinear, ready: _Ready, sides: int) -> Own:
    bias = ready(correction.bias)
    if isinstance(correction, RefitCorrection):
        if shared.bias is not None:
            bias = bias + shared.bias
        return Own(inner=DenseLinear(ready(correction.weight), bias), replaces=True)
    entry = None if correction.entry is None else _entry(correction.entry, ready, sides)
    if correction.rank == 0:
        return Own(bias=bias, entry=entry)
    inner = DenseLinear(ready(correction.down))
    return Own(inner=inner, outer=DenseLinear(ready(correction.up), bias), entry=entry)


def _entry(entry: InputCorrection, ready: _Ready, sides: int) -> OwnEntry:
    if entry.rank == 0:
        return OwnEntry(ready(entry.norm))
    outers = tuple(DenseLinear(up) for up in ready(entry.up).chunk(sides))
    return OwnEntry(ready(entry.norm), DenseLinear(ready(entry.down)), outers)
