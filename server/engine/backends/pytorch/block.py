"""One sub-block for a batch of mixed variants: each weight is read once, by all rows that use it.

A sub-block is the attention or the MLP of one layer, with its norms and its output projection.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.pytorch.corrections import PyTorchCorrection
from server.engine.backends.pytorch.linear import SliceableLinear
from server.engine.backends.pytorch.nested_widths import ALL_ROWS, Index, RowSubsets, WidthRange
from server.engine.backends.pytorch.weights import RMSNorm

CorrectionByVariant = dict[VariantSpec, PyTorchCorrection]


@dataclass(frozen=True, slots=True)
class RangeCorrections:
    """The corrections of the input projections for the rows of one width range.

    `h` are the normed rows, `[rows, hidden]`, of the range's variants.
    """

    h: Tensor
    widths: WidthRange
    subsets: RowSubsets
    corrections: CorrectionByVariant

    def add_to(self, output: Tensor, projection: int, low: int, high: int) -> Tensor:
        """Add the corrections to outputs `low..high` of an input projection; return `output`.

        `output` is `[rows, high - low]` and is changed. `projection` numbers it: 0 is the fused
        projection of attention or an MLP's gate, 1 the MLP's up.
        """
        for variant, correction in self.corrections.items():
            entry = correction.entry
            if variant in self.widths.variants and entry is not None and entry.inner:
                where = self.subsets.index(frozenset((variant,)), self.widths.variants)
                _add(output, where, entry.outputs(self.h[where], projection, low, high))
        return output


@dataclass(frozen=True, slots=True)
class SubBlock:
    """One sub-block of one layer, for the variants of one batch.

    `features(h, widths, corrections)` computes the inputs of `project` that the units of one width
    range give, `[rows, unit * (high - low)]`. `corrections` are those of this sub-block by the
    variant's name. What the sub-block adds to the residual stream is multiplied by `scale`.
    """

    ranges: tuple[WidthRange, ...]
    norm: RMSNorm | None
    out_norm: RMSNorm | None
    features: Callable[[Tensor, WidthRange, RangeCorrections], Tensor]
    project: SliceableLinear
    unit: int
    corrections: Mapping[str, PyTorchCorrection]
    scale: float


def run_sub_block(x: Tensor, subsets: RowSubsets, block: SubBlock) -> Tensor:
    """Return `x + scale * f(norm(x))` for rows that have this sub-block, range by range.

    `x` is `[rows, hidden]` and may be changed. To rows that skip the sub-block, the constant that
    their variant's correction has in its place is added, if there is one.
    """
    members = block.ranges[0].variants if block.ranges else frozenset()
    if members:
        where = subsets.index(members, subsets.variants)
        named = block.corrections
        corrections = {v: named[v.name] for v in members if v.name in named} if named else {}
        # Without a norm a copy, since corrections change what the projections read.
        h = x[where].clone() if block.norm is None else block.norm(x[where])
        for variant, correction in corrections.items():
            if correction.entry is not None:
                h[subsets.index(frozenset((variant,)), members)] *= correction.entry.norm
        out = _outputs(h, subsets, block, corrections)
        if block.out_norm is not None:
            out = block.out_norm(out)
        if block.scale != 1.0:
            out = out * block.scale
        if isinstance(where, slice) and where == ALL_ROWS:
            return x + out
        _add(x, where, out)
    for variant in subsets.variants - members if block.corrections else ():
        if variant.name in block.corrections:
            rows = frozenset((variant,))
            constant = block.corrections[variant.name].finish(None, subsets.of(rows).count)
            _add(x, subsets.index(rows, subsets.variants), constant * block.scale)
    return x


def _outputs(
    h: Tensor, subsets: RowSubsets, block: SubBlock, corrections: CorrectionByVariant
) -> Tensor:
    """Return the output projection with corrections, `[rows, hidden]`, for normed rows `h`."""
    members = block.ranges[0].variants
    sharing = members - {variant for variant, own in corrections.items() if own.replaces}
    inner: dict[VariantSpec, Tensor] = {}
    out: Tensor | None = None
    for widths in block.ranges:
        reached = h[subsets.index(widths.variants, members)]
        range_corrections = RangeCorrections(reached, widths, subsets, corrections)
        inputs = block.features(reached, widths, range_corrections)
        low, high = widths.low * block.unit, widths.high * block.unit
        for variant in corrections.keys() & widths.variants:
            rows = inputs[subsets.index(frozenset((variant,)), widths.variants)]
            product = corrections[variant].partial(rows, low, high)
            if product is not None:
                inner[variant] = inner[variant] + product if variant in inner else product
        shared = widths.variants & sharing
        if shared:
            y = block.project.inputs(low, high)(inputs[subsets.index(shared, widths.variants)])
            if out is None and shared == members:
                out = y
                continue
            out = h.new_zeros(len(h), y.shape[1]) if out is None else out
            _add(out, subsets.index(shared, members), y)
    if out is None:
        out = h.new_zeros(len(h), block.project.weight.shape[0])
    for variant, correction in corrections.items():
        alone = frozenset((variant,))
        added = correction.finish(inner.get(variant), subsets.of(alone).count)
        _add(out, subsets.index(alone, members), added)
    return out


def _add(target: Tensor, where: Index, value: Tensor) -> None:
    """Add `value` `[some rows, n]` to rows `where` of `target` `[rows, n]`."""
    if isinstance(where, slice):
        target[where] += value
    else:
        target.index_add_(0, where, value)
