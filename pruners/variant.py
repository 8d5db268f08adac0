"""A variant as data: how wide each layer is. Width 0 means that the sub-block is skipped."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pruners.architecture import Shape  # it needs PyTorch, names do not
from pruners.support.validation import EXACT

BASE = "base"

Part: TypeAlias = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")


class Block(NamedTuple):
    """One sub-block of one layer."""

    layer: int
    part: Part


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One servable sub-model, as prefix widths of the importance-ordered base.

    `kv_groups[l]` key/value groups (with their query heads) and `ffn[l]` neurons are kept in
    layer `l`; 0 skips the attention or the feed-forward block.
    """

    name: str
    kv_groups: tuple[int, ...]
    ffn: tuple[int, ...]
    __pydantic_config__ = EXACT

    def __hash__(self) -> int:
        # Variants are looked up thousands of times a second; the widths would be hashed each time.
        return hash(self.name)

    def check(self, shape: "Shape") -> None:
        """Raises `ValueError` if the widths do not fit a base of this shape."""
        for what, widths, full in (
            ("kv_groups", self.kv_groups, shape.kv_groups),
            ("ffn", self.ffn, shape.ffn),
        ):
            if len(widths) != shape.layers:
                raise ValueError(
                    f"variant '{self.name}': {what} has {len(widths)} layers, "
                    f"the model has {shape.layers}"
                )
            if not all(isinstance(width, int) and 0 <= width <= full for width in widths):
                raise ValueError(f"variant '{self.name}': {what} outside 0..{full}")

    def width(self, block: Block) -> int:
        """KV groups or neurons of one block."""
        return (self.kv_groups if block.part == "attention" else self.ffn)[block.layer]

    def with_width(self, block: Block, width: int) -> "VariantSpec":
        """The same with this width in one block."""
        if block.part == "attention":
            return replace(self, kv_groups=_with(self.kv_groups, block.layer, width))
        return replace(self, ffn=_with(self.ffn, block.layer, width))

    def body_parameters(self, shape: "Shape") -> int:
        """Matrix parameters touched for one token, without embedding and head."""
        per_group = shape.hidden * shape.head_dim * (2 * shape.queries_per_group + 2)
        per_neuron = shape.hidden * (3 if shape.gated else 2)
        return sum(self.kv_groups) * per_group + sum(self.ffn) * per_neuron

    def kv_elements(self, shape: "Shape") -> int:
        """Keys and values of one cached token, in numbers."""
        return 2 * shape.head_dim * sum(self.kv_groups)

    def parameters(self, shape: "Shape") -> int:
        """Matrix parameters touched for one generated token: the body and the head."""
        return self.body_parameters(shape) + shape.hidden * shape.vocab


def base_spec(shape: "Shape") -> VariantSpec:
    """The unpruned model as a variant."""
    return VariantSpec(BASE, (shape.kv_groups,) * shape.layers, (shape.ffn,) * shape.layers)


def width_spec(shape: "Shape", keep: float, multiple: int = 32) -> VariantSpec:
    """The same share of FFN neurons in every layer, rounded to `multiple`.

    Multiples of 32 keep every prefix on a block boundary of packed 4-bit weights.
    """
    width = max(multiple, round(shape.ffn * keep / multiple) * multiple)
    name = f"ffn-{100 * keep:g}"
    return VariantSpec(name, (shape.kv_groups,) * shape.layers, (width,) * shape.layers)


def depth_spec(shape: "Shape", skipped: list[int]) -> VariantSpec:
    """Whole layers skipped; the name counts those left."""
    gone = set(skipped)
    return VariantSpec(
        f"depth-{shape.layers - len(gone)}",
        tuple(0 if layer in gone else shape.kv_groups for layer in range(shape.layers)),
        tuple(0 if layer in gone else shape.ffn for layer in range(shape.layers)),
    )


def intersect(first: VariantSpec, second: VariantSpec) -> VariantSpec:
    """What is left when both cuts are made, such as `depth-24-ffn-75`."""
    return VariantSpec(
        f"{first.name}-{second.name}",
        tuple(map(min, first.kv_groups, second.kv_groups)),
        tuple(map(min, first.ffn, second.ffn)),
    )


def _with(widths: tuple[int, ...], index: int, width: int) -> tuple[int, ...]:
    return (*widths[:index], width, *widths[index + 1 :])
