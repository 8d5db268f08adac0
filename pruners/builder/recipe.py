"""What to build."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pruners.allocation import ffn_levels, kv_levels
from pruners.architecture import Shape
from pruners.importance import make_scorer
from pruners.kv import make_eviction
from pruners.reading.reader import PromptReader
from pruners.support.errors import UserError
from pruners.variant import Part, VariantSpec, depth_spec, intersect, width_spec


class BuildError(UserError):
    """The recipe or the rows cannot give an artefact of this model. One line."""


Budget = Literal["bytes", "latency"]
_TYPICAL_PROMPT = 512  # tokens; readers are named after what they take of it
_NUMBERS_SHARE = 0.2  # of usual text are numbers and what stands before them


@dataclass(frozen=True, slots=True)
class ReaderPlan:
    """A reader to fit: `depth` in layers, or below 1 as a share of the model's layers.

    The `last` tokens are read in full, where turns begin too, and with `numbers` also numbers and
    the tokens before them. Without a `name` it is called after its share of the base's
    multiply-adds for a typical prompt, such as `read-70`.
    """

    depth: float
    last: int = 32
    numbers: bool = False
    name: str | None = None

    def make(self, shape: Shape) -> PromptReader:
        """Return the reader for a model of this shape. Raises `BuildError`."""
        depth = self.depth
        if 0 < depth < 1:
            depth = min(max(round(depth * shape.layers), 1), shape.layers - 1)
        if not 0 < depth < shape.layers or depth != int(depth) or self.last < 1:
            raise BuildError(
                f"recipe: a reader of depth {self.depth:g} with {self.last} last tokens does not "
                f"go with the model's {shape.layers} layers"
            )
        reader = PromptReader("", int(depth), self.last, numbers=self.numbers)
        full = reader.ends
        full += self.numbers * round(_NUMBERS_SHARE * (_TYPICAL_PROMPT - full))
        share = reader.cost(shape, _TYPICAL_PROMPT, min(full, _TYPICAL_PROMPT))
        return replace(reader, name=self.name or f"read-{100 * share:.0f}")


def make_readers(plans: Sequence[ReaderPlan], shape: Shape) -> dict[str, PromptReader]:
    """Return the readers of a model by name; none for a model of one layer.

    Plans that come to the same reader are one. Raises `BuildError`.
    """
    found: dict[str, PromptReader] = {}
    for plan in plans if shape.layers > 1 else ():
        reader = plan.make(shape)
        if any(replace(reader, name=name) == one for name, one in found.items()):
            continue
        if reader.name in found:
            raise BuildError(f"recipe: two readers are named '{reader.name}'; name them yourself")
        found[reader.name] = reader
    return found


DEFAULT_READERS = (ReaderPlan(0.6), ReaderPlan(0.3, numbers=True), ReaderPlan(0.3))


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build. It is written into the artefact, and with the same rows gives the same one.

    Which variants: `ffn_keep` are shares of FFN neurons kept in every layer, `skip_layers` numbers
    of layers, `mixed` pairs of both. `shares` are shares of the base's cost in the `budget` (bytes
    read, or measured seconds, for a token); for each, widths of all blocks are chosen with the
    least KL. `search` is the number of candidates for a share, 0 for the greedy one alone. Variants
    on the Pareto front of cost and KL are kept, with `keep_all` the others too.

    How: `importance` names a scorer. `rank` is that of the corrections, 0 for biases alone. With
    `sequential`, corrections are also fitted behind a variant's own pruned layers, in two passes a
    variant; with `materialised`, a variant gets refitted matrices of its own. `kv_budgets` are in
    tokens, measured on the base over rows of twice their length. `calibration_tokens` rank units
    and fit corrections; `selection_tokens` of rows that no fit sees choose layers and widths.
    `readers` are fitted on `reader_tokens`; those that are the same in a shallow model are one.
    """

    ffn_keep: tuple[float, ...] = ()
    skip_layers: tuple[int, ...] = ()
    mixed: tuple[tuple[int, float], ...] = ()
    budget: Budget = "bytes"
    shares: tuple[float, ...] = (0.92, 0.8, 0.6, 0.5)
    search: int = 0
    keep_all: bool = False
    importance: str = "wanda"
    rank: int = 16
    sequential: bool = False
    materialised: bool = False
    kv_budgets: tuple[int, ...] = (1024, 512, 256)
    calibration_tokens: int = 16_384
    selection_tokens: int = 2_048
    readers: tuple[ReaderPlan, ...] = DEFAULT_READERS
    reader_tokens: int = 32_768
    seed: int = 0

    def check(self, shape: Shape) -> None:
        """Raise `BuildError` or `ImportanceError` if a model of this shape cannot be cut so."""
        make_scorer(self.importance)
        for what, shares in (
            ("ffn_keep", (*self.ffn_keep, *(keep for _, keep in self.mixed))),
            ("shares", self.shares),
        ):
            for share in shares:
                if not 0 < share < 1:
                    raise BuildError(f"recipe: {what} {share:g} is not between 0 and 1")
        for skip in self._skips():
            if not 0 < skip < shape.layers:
                raise BuildError(f"recipe: cannot skip {skip} of the model's {shape.layers} layers")
        for budget in self.kv_budgets:
            try:
                make_eviction(budget)
            except ValueError as error:
                raise BuildError(f"recipe: {error}") from error
        if min(self.calibration_tokens, self.selection_tokens) < 2:
            raise BuildError("recipe: calibration and selection need at least 2 tokens")
        if self.rank < 0 or self.search < 0:
            raise BuildError("recipe: rank and search cannot be negative")
        make_readers(self.readers, shape)
        if self.reader_tokens < 256:
            raise BuildError("recipe: readers need at least 256 tokens")

    def deepest(self) -> int:
        """Return the largest number of layers that a variant skips."""
        return max(self._skips(), default=0)

    def uniform_specs(self, shape: Shape, skip_order: Sequence[int]) -> list[VariantSpec]:
        """Return the variants that need no allocation; `skip_order[0]` is skipped first."""
        widths = [width_spec(shape, keep) for keep in self.ffn_keep]
        depths = [depth_spec(shape, list(skip_order[:skip])) for skip in self.skip_layers]
        mixed = [
            intersect(depth_spec(shape, list(skip_order[:skip])), width_spec(shape, keep))
            for skip, keep in self.mixed
        ]
        return [*widths, *depths, *mixed]

    def widths(self, shape: Shape) -> Mapping[Part, tuple[int, ...]]:
        """Return KV groups and neurons, falling, at which a block may need a correction."""
        if self.shares:
            return {"attention": kv_levels(shape)[1:], "mlp": ffn_levels(shape)[1:]}
        skipped = (0,) if self.deepest() else ()
        keeps = (*self.ffn_keep, *(keep for _, keep in self.mixed))
        ffn = {width_spec(shape, keep).ffn[0] for keep in keeps} - {shape.ffn}
        return {"attention": skipped, "mlp": (*sorted(ffn, reverse=True), *skipped)}

    def _skips(self) -> list[int]:
        return [*self.skip_layers, *(skip for skip, _ in self.mixed)]
