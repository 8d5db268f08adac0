"""Small tensors that win quality back, and their names in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import nn

from pruners.support.errors import UserError
from pruners.variant import PARTS, Block


class RecoveryError(UserError):
    """Too few rows, or tensors that are no corrections. One clear line."""


@dataclass(frozen=True, slots=True)
class InputCorrection:
    """What training gives a sub-block at its entrance, beside the shared input projections.

    The normed input is multiplied by `norm` `[hidden]`; `up @ (down @ x)` of that is added to what
    the input projections give. `down` is `[rank, hidden]`, `up` `[features, rank]`; rank 0 is the
    norm alone. Features are those of the kept units, in their order: of attention, group after
    group its queries, its key and its value; of an MLP all gates (if it has them), then all ups.
    """

    norm: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there is of it."""
        return self.norm, self.up, self.down


@dataclass(frozen=True, slots=True)
class LowRankCorrection:
    """`y + bias + up @ (down @ h)` on the kept inputs h, in their order; the weights are shared.

    `bias` is `[out]`, `up` `[out, rank]`, `down` `[rank, kept]`; rank 0 is the bias alone. Where
    nothing is kept, the bias is what a skipped block adds to the residual stream, and there is no
    `entry`.
    """

    bias: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    entry: InputCorrection | None = None

    @property
    def input_width(self) -> int:
        """How many inputs it was made for."""
        return self.down.shape[1]

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All there is of it."""
        entry = () if self.entry is None else self.entry.tensors()
        return self.bias, self.up, self.down, *entry

    def correct(
        self, linear: nn.Linear, inputs: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """The better output of `linear`, given its kept inputs and what it gave."""
        residual = (inputs @ _like(self.down, output).T) @ _like(self.up, output).T
        return output + residual + _like(self.bias, output)


@dataclass(frozen=True, slots=True)
class RefitCorrection:
    """`weight @ h + bias` in place of the kept columns: as large as they are, nothing shared.

    `weight` is `[out, kept]`, `bias` `[out]`, added to the bias that the base has.
    """

    bias: torch.Tensor
    weight: torch.Tensor

    @property
    def input_width(self) -> int:
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


def constant_correction(adds: torch.Tensor) -> LowRankCorrection:
    """For a skipped block: what it adds to the residual stream on average, `[hidden]`."""
    return LowRankCorrection(adds, adds.new_zeros(len(adds), 0), adds.new_zeros(0, 0))


Correction: TypeAlias = LowRankCorrection | RefitCorrection
Corrections: TypeAlias = Mapping[Block, Correction]
"""One for each cut `o` (part `attention`) and `down` (part `mlp`) of a variant."""


def to_tensors(corrections: Corrections) -> dict[str, torch.Tensor]:
    """Named `layer.part.tensor`, such as `3.mlp.down`, for one variant of a corrections file."""
    return {
        f"{block.layer}.{block.part}.{name}": tensor.contiguous()
        for block, correction in corrections.items()
        for name, tensor in _named(correction).items()
    }


def _named(correction: Correction | InputCorrection) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for field in fields(correction):
        value = getattr(correction, field.name)
        if isinstance(value, InputCorrection):
            found |= {f"{field.name}.{name}": tensor for name, tensor in _named(value).items()}
        elif value is not None:
            found[field.name] = value
    return found


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[Block, Correction]:
    """Reads what `to_tensors` gave. Raises `RecoveryError` on any other names or shapes."""
    groups: dict[Block, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".")
        part = next((part for part in PARTS if rest.startswith(f"{part}.")), None)
        if part is None or not (layer.isascii() and layer.isdigit()):
            raise RecoveryError(f"'{name}' is not the name of a correction")
        groups.setdefault(Block(int(layer), part), {})[rest.removeprefix(f"{part}.")] = tensor
    return {block: _read(block, group) for block, group in groups.items()}


def _read(block: Block, group: Mapping[str, torch.Tensor]) -> Correction:
    shapes = {name: tuple(tensor.shape) for name, tensor in group.items()}
    own = {name: tensor for name, tensor in group.items() if not name.startswith("entry.")}
    entry = {name.removeprefix("entry."): group[name] for name in group.keys() - own.keys()}
    match shapes:
        case {"bias": (out,), "up": (rows, rank), "down": (same, _)} if (
            len(own) == 3 and rows == out and same == rank
        ):
            if not entry:
                return LowRankCorrection(own["bias"], own["up"], own["down"])
            match shapes:
                case {
                    "entry.norm": (hidden,),
                    "entry.up": (_, inner),
                    "entry.down": (likewise, inputs),
                } if len(entry) == 3 and inner == likewise and inputs == hidden:
                    return LowRankCorrection(
                        own["bias"], own["up"], own["down"], InputCorrection(**entry)
                    )
        case {"bias": (out,), "weight": (rows, _), **other} if not other and rows == out:
            return RefitCorrection(**group)
    raise RecoveryError(f"correction of layer {block.layer} {block.part} has shapes {shapes}")


def _like(tensor: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return tensor.to(device=output.device, dtype=output.dtype)
