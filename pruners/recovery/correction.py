"""Small tensors that win quality back, and their names in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import nn

from pruners.errors import UserError
from pruners.variant import PARTS, Block


class RecoveryError(UserError):
    """Too few rows, or tensors that are no corrections. One clear line."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """`y + bias + up @ (down @ h)` on the kept inputs h, in their order; the weights are shared.

    `bias` is `[out]`, `up` `[out, rank]`, `down` `[rank, kept]`; rank 0 is the bias alone. Where
    nothing is kept, the bias is what a skipped block adds to the residual stream.
    """

    bias: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @property
    def kept(self) -> int:
        """How many inputs it was made for."""
        return self.down.shape[1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there is of it."""
        return self.bias, self.up, self.down

    def correct(
        self, linear: nn.Linear, inputs: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """The better output of `linear`, given its kept inputs and what it gave."""
        residual = (inputs @ _like(self.down, output).T) @ _like(self.up, output).T
        return output + residual + _like(self.bias, output)


@dataclass(frozen=True, slots=True)
class Materialised:
    """`weight @ h + bias` in place of the kept columns: as large as they are, nothing shared.

    `weight` is `[out, kept]`, `bias` `[out]`, added to the bias that the base has.
    """

    bias: torch.Tensor
    weight: torch.Tensor

    @property
    def kept(self) -> int:
        """How many inputs it was made for."""
        return self.weight.shape[1]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there is of it."""
        return self.bias, self.weight

    def correct(
        self, linear: nn.Linear, inputs: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """The better output of `linear`, given its kept inputs."""
        added = _like(self.bias, output)
        if linear.bias is not None:
            added = added + linear.bias
        return inputs @ _like(self.weight, output).T + added


def constant(adds: torch.Tensor) -> LowRank:
    """For a skipped block: what it adds to the residual stream on average, `[hidden]`."""
    return LowRank(adds, adds.new_zeros(len(adds), 0), adds.new_zeros(0, 0))


Correction: TypeAlias = LowRank | Materialised
Corrections: TypeAlias = Mapping[Block, Correction]
"""One for each cut `o` (part `attention`) and `down` (part `mlp`) of a variant."""


def to_tensors(corrections: Corrections) -> dict[str, torch.Tensor]:
    """Named `layer.part.tensor`, such as `3.mlp.down`, for one variant of a corrections file."""
    return {
        f"{block.layer}.{block.part}.{field.name}": getattr(correction, field.name).contiguous()
        for block, correction in corrections.items()
        for field in fields(correction)
    }


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[Block, Correction]:
    """Reads what `to_tensors` gave. Raises `RecoveryError` on any other names or shapes."""
    groups: dict[Block, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".")
        part = next((part for part in PARTS if rest.startswith(f"{part}.")), None)
        if part is None or not layer.isdigit():
            raise RecoveryError(f"'{name}' is not the name of a correction")
        groups.setdefault(Block(int(layer), part), {})[rest.removeprefix(f"{part}.")] = tensor
    return {block: _read(block, group) for block, group in groups.items()}


def _read(block: Block, group: Mapping[str, torch.Tensor]) -> Correction:
    shapes = {name: tuple(tensor.shape) for name, tensor in group.items()}
    match shapes:
        case {"bias": (out,), "up": (rows, rank), "down": (same, _), **other} if (
            not other and rows == out and same == rank
        ):
            return LowRank(**group)
        case {"bias": (out,), "weight": (rows, _), **other} if not other and rows == out:
            return Materialised(**group)
    raise RecoveryError(f"correction of layer {block.layer} {block.part} has shapes {shapes}")


def _like(tensor: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return tensor.to(device=output.device, dtype=output.dtype)
