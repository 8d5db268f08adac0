"""Variants as data: the number of KV groups and neurons that each layer keeps."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from pruners.architecture import Shape  # imports PyTorch, which names of variants do not need
from pruners.support.validation import EXACT

BASE = "base"

Part: TypeAlias = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")


class Block(NamedTuple):
    """The attention block or the feed-forward block (`mlp`) of one layer, counted from 0."""

    layer: int
    part: Part


@dataclass(frozen=True, slots=True)
class VariantSpec:
    """One servable sub-model, as widths of the base whose units are ordered by importance.

    Layer `l` keeps its first `kv_groups[l]` key/value groups, with their query heads, and its first
    `ffn[l]` neurons. Width 0 skips the attention or the feed-forward block.
    """

    name: str
    kv_groups: tuple[int, ...]
    ffn: tuple[int, ...]
    __pydantic_config__ = EXACT

    def __hash__(self) -> int:
        # Variants are looked up thousands of times a second; hashing all widths would be slow.
        return hash(self.name)

    def check(self, shape: "Shape") -> None:
        """Raise `ValueError` if the widths do not fit a base of this shape."""
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
        if not shape.cuts_groups and not set(self.kv_groups) <= {0, shape.kv_groups}:
            raise ValueError(
                f"variant '{self.name}' keeps some of a layer's KV groups, but in this model a "
                "norm joins all heads: a layer keeps all of them or none"
            )

    def width(self, block: Block) -> int:
        """Return the number of KV groups or neurons that one block keeps."""
        return (self.kv_groups if block.part == "attention" else self.ffn)[block.layer]

    def with_width(self, block: Block, width: int) -> "VariantSpec":
        """Return a copy of this variant, under the same name, with this width in one block."""
        if block.part == "attention":
            return replace(self, kv_groups=_replace_at(self.kv_groups, block.layer, width))
        return replace(self, ffn=_replace_at(self.ffn, block.layer, width))

    def body_parameters(self, shape: "Shape") -> int:
        """Return the number of matrix parameters read for one token, without embedding and head."""
        per_group = shape.hidden * shape.head_dim * (2 * shape.queries_per_group + 2)
        per_neuron = shape.hidden * (3 if shape.gated else 2)
        return sum(self.kv_groups) * per_group + sum(self.ffn) * per_neuron

    def kv_elements(self, shape: "Shape") -> int:
        """Return how many numbers the keys and values of one cached token are, over all layers."""
        return 2 * shape.head_dim * sum(self.kv_groups)

    def parameters(self, shape: "Shape") -> int:
        """Return the number of matrix parameters read for one generated token: body and head."""
        return self.body_parameters(shape) + shape.hidden * shape.vocab


def base_spec(shape: "Shape") -> VariantSpec:
    """Return the unpruned model as a variant."""
    return VariantSpec(BASE, (shape.kv_groups,) * shape.layers, (shape.ffn,) * shape.layers)


def width_spec(shape: "Shape", keep: float, multiple: int = 32) -> VariantSpec:
    """Return a variant with the share `keep` (0 to 1) of the neurons of every layer.

    The number of neurons is rounded to a multiple of `multiple`. With multiples of 32, every prefix
    ends at a block boundary of packed 4-bit weights.
    """
    width = max(multiple, round(shape.ffn * keep / multiple) * multiple)
    name = f"ffn-{100 * keep:g}"
    return VariantSpec(name, (shape.kv_groups,) * shape.layers, (width,) * shape.layers)


def depth_spec(shape: "Shape", skipped: list[int]) -> VariantSpec:
    """Return a variant without the layers `skipped`; its name counts the layers that remain."""
    removed = set(skipped)
    return VariantSpec(
        f"depth-{shape.layers - len(removed)}",
        tuple(0 if layer in removed else shape.kv_groups for layer in range(shape.layers)),
        tuple(0 if layer in removed else shape.ffn for layer in range(shape.layers)),
    )


def intersect(first: VariantSpec, second: VariantSpec) -> VariantSpec:
    """Return a variant that keeps what both keep, under a name such as `depth-24-ffn-75`."""
    return VariantSpec(
        f"{first.name}-{second.name}",
        tuple(map(min, first.kv_groups, second.kv_groups)),
        tuple(map(min, first.ffn, second.ffn)),
    )


def _replace_at(widths: tuple[int, ...], index: int, width: int) -> tuple[int, ...]:
    return (*widths[:index], width, *widths[index + 1 :])
