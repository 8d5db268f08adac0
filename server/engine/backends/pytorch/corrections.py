"""The corrections of variants as the PyTorch decoder applies them beside the shared weights."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from pruners.correction import Correction, InputCorrection, RefitCorrection
from pruners.variant import Block
from server.engine.backends.pytorch.linear import SliceableLinear
from server.engine.backends.pytorch.weights import PyTorchWeights


@dataclass(frozen=True, slots=True)
class PyTorchInputCorrection:
    """The correction in front of a sub-block: a factor of its norm and a low-rank product.

    `norm` is `[hidden]`. `inner` maps hidden states to the rank; `outers` has one map from there
    for each input projection: of attention the fused one, of an MLP gate and up.
    """

    norm: Tensor
    inner: SliceableLinear | None = None
    outers: tuple[SliceableLinear, ...] = ()

    def outputs(self, h: Tensor, projection: int, low: int, high: int) -> Tensor:
        """Return what to add to outputs `low..high` of an input projection, `[rows, high - low]`.

        `h` is `[rows, hidden]`.
        """
        assert self.inner is not None
        return self.outers[projection].outputs(low, high)(self.inner(h))

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor."""
        ranks = [] if self.inner is None else [self.inner, *self.outers]
        return [self.norm, *(tensor for part in ranks for tensor in part.tensors())]


@dataclass(frozen=True, slots=True)
class PyTorchCorrection:
    """The correction of one `o` or `down`: `outer(inner(inputs))`, or `bias` `[hidden]` alone.

    With `replaces` it stands in the place of the shared columns, else it is added to them. `entry`
    is the correction in front of the sub-block.
    """

    inner: SliceableLinear | None = None
    outer: SliceableLinear | None = None
    bias: Tensor | None = None
    replaces: bool = False
    entry: PyTorchInputCorrection | None = None

    def partial(self, inputs: Tensor, low: int, high: int) -> Tensor | None:
        """Return what inputs `low..high`, `[rows, high - low]`, add to the inner product.

        It is `[rows, rank]`, or None for a correction that is only a bias.
        """
        return None if self.inner is None else self.inner.inputs(low, high)(inputs)

    def finish(self, inner: Tensor | None, rows: int) -> Tensor:
        """Return what to add to the output, `[rows, hidden]`.

        `inner` is the whole inner product `[rows, rank]`, or None.
        """
        if inner is None:
            assert self.bias is not None
            return self.bias.expand(rows, -1)
        return inner if self.outer is None else self.outer(inner)

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor."""
        parts = [part for part in (self.inner, self.outer) if part is not None]
        bias = [] if self.bias is None else [self.bias]
        entry = [] if self.entry is None else self.entry.tensors()
        return [*bias, *(tensor for part in parts for tensor in part.tensors()), *entry]


PyTorchCorrections = dict[Block, dict[str, PyTorchCorrection]]
"""By block, then by the variant's name."""


def convert_corrections(
    weights: PyTorchWeights, corrections: Mapping[str, Mapping[Block, Correction]]
) -> PyTorchCorrections:
    """Convert corrections by variant and block to the dtype and the device of the weights.

    Tensors that variants share are resident once.
    """
    converted: PyTorchCorrections = {}
    converter = _Converter(weights)
    for variant, blocks in corrections.items():
        for block, correction in blocks.items():
            layer = weights.layers[block.layer]
            shared, projections = (layer.o, 1) if block.part == "attention" else (layer.down, 2)
            made = converter.correction(correction, shared, projections)
            converted.setdefault(block, {})[variant] = made
    return converted


class _Converter:
    """Converts corrections, and each tensor once."""

    def __init__(self, weights: PyTorchWeights) -> None:
        self._device, self._dtype = weights.device, weights.dtype
        self._converted: dict[int, Tensor] = {}

    def correction(
        self, correction: Correction, shared: SliceableLinear, projections: int
    ) -> PyTorchCorrection:
        """Convert a correction beside `shared`, with as many input projections as given."""
        bias = self._tensor(correction.bias)
        if isinstance(correction, RefitCorrection):
            if shared.bias is not None:
                bias = bias + shared.bias
            weight = self._tensor(correction.weight)
            return PyTorchCorrection(inner=SliceableLinear(weight, bias), replaces=True)
        entry = None if correction.entry is None else self._entry(correction.entry, projections)
        if correction.rank == 0:
            return PyTorchCorrection(bias=bias, entry=entry)
        return PyTorchCorrection(
            inner=SliceableLinear(self._tensor(correction.down)),
            outer=SliceableLinear(self._tensor(correction.up), bias),
            entry=entry,
        )

    def _entry(self, entry: InputCorrection, projections: int) -> PyTorchInputCorrection:
        norm = self._tensor(entry.norm)
        if entry.rank == 0:
            return PyTorchInputCorrection(norm)
        ups = self._tensor(entry.up).chunk(projections)
        inner = SliceableLinear(self._tensor(entry.down))
        return PyTorchInputCorrection(norm, inner, tuple(SliceableLinear(up) for up in ups))

    def _tensor(self, tensor: Tensor) -> Tensor:
        """Return a tensor of any shape in the dtype and on the device of the weights."""
        if id(tensor) not in self._converted:
            made = tensor.to(device=self._device, dtype=self._dtype).contiguous()
            self._converted[id(tensor)] = made
        return self._converted[id(tensor)]
