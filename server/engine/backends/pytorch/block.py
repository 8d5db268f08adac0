"""One sub-block for a batch of mixed variants: each weight is read once, each row gets its own."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.pytorch.corrections import Own
from server.engine.backends.pytorch.linear import DenseLinear
from server.engine.backends.pytorch.nested_widths import WHOLE, Index, RowSets, Rung
from server.engine.backends.pytorch.weights import Norm

Owners = dict[VariantSpec, Own]


@dataclass(frozen=True, slots=True)
class Entries:
    """What the rows `h` of a rung's variants add to the outputs of the input projections."""

    h: Tensor
    rung: Rung
    sets: RowSets
    owners: Owners

    def add_to(self, output: Tensor, side: int, low: int, high: int) -> Tensor:
        """Adds to outputs `low..high` of input projection `side`; `output` is changed."""
        for variant, own in self.owners.items():
            if variant in self.rung.variants and own.entry is not None and own.entry.inner:
                where = self.sets.index(frozenset((variant,)), self.rung.variants)
                _add(output, where, own.entry.features(self.h[where], side, low, high))
        return output


@dataclass(frozen=True, slots=True)
class Site:
    """One sub-block of one layer, as a batch meets it.

    `features(h, rung, entries)` makes the inputs of `project` that a rung's units give, `unit` of
    them each. `own` are the corrections of variants, by name.
    """

    rungs: tuple[Rung, ...]
    norm: Norm
    out_norm: Norm | None
    features: Callable[[Tensor, Rung, Entries], Tensor]
    project: DenseLinear
    unit: int
    own: dict[str, Own]


def run_block(x: Tensor, sets: RowSets, site: Site) -> Tensor:
    """`x + f(norm(x))` for the rows that have this sub-block, rung by rung; `x` may be changed.

    Rows that skip it get the constant that their variant has in its place, if it has one.
    """
    members = site.rungs[0].variants if site.rungs else frozenset()
    if members:
        where = sets.index(members, sets.variants)
        owners = {v: site.own[v.name] for v in members if v.name in site.own} if site.own else {}
        h = site.norm(x[where])
        for variant, own in owners.items():
            if own.entry is not None:
                h[sets.index(frozenset((variant,)), members)] *= own.entry.norm
        out = _outputs(h, sets, site, members, owners)
        if site.out_norm is not None:
            out = site.out_norm(out)
        if isinstance(where, slice) and where == WHOLE:
            return x + out
        _add(x, where, out)
    if site.own:
        for variant in sets.variants - members:
            if variant.name in site.own:
                rows = frozenset((variant,))
                constant = site.own[variant.name].finish(None, sets.of(rows).count)
                _add(x, sets.index(rows, sets.variants), constant)
    return x


def _outputs(
    h: Tensor, sets: RowSets, site: Site, members: frozenset[VariantSpec], owners: Owners
) -> Tensor:
    sharing = members - {variant for variant, own in owners.items() if own.replaces}
    inner: dict[VariantSpec, Tensor] = {}
    out: Tensor | None = None
    for rung in site.rungs:
        reached = h[sets.index(rung.variants, members)]
        inputs = site.features(reached, rung, Entries(reached, rung, sets, owners))
        low, high = rung.low * site.unit, rung.high * site.unit
        for variant in owners.keys() & rung.variants:
            mine = inputs[sets.index(frozenset((variant,)), rung.variants)]
            part = owners[variant].partial(mine, low, high)
            if part is not None:
                inner[variant] = inner[variant] + part if variant in inner else part
        shared = rung.variants & sharing
        if shared:
            y = site.project.inputs(low, high)(inputs[sets.index(shared, rung.variants)])
            if out is None and shared == members:
                out = y
                continue
            out = h.new_zeros(len(h), y.shape[1]) if out is None else out
            _add(out, sets.index(shared, members), y)
    if out is None:
        out = h.new_zeros(len(h), site.project.weight.shape[0])
    for variant, own in owners.items():
        alone = frozenset((variant,))
        added = own.finish(inner.get(variant), sets.of(alone).count)
        _add(out, sets.index(alone, members), added)
    return out


def _add(target: Tensor, where: Index, value: Tensor) -> None:
    if isinstance(where, slice):
        target[where] += value
    else:
        target.index_add_(0, where, value)
