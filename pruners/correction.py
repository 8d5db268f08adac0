"""Corrections: small tensors of a variant that win quality back, and their names in a file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import nn

from pruners.support.errors import UserError
from pruners.variant import PARTS, Block


class RecoveryError(UserError):
    """There are too few rows, or tensors are no corrections. The message is one line."""


@dataclass(frozen=True, slots=True)
class InputCorrection:
    """A trained correction of a block's input projections, whose weights stay shared.

    With `x` the normed input of the block, the projections get `z = norm * x` instead of `x`, and
    `up @ (down @ z)` is added to their outputs. `norm` is `[hidden]`, `down` `[rank, hidden]`, `up`
    `[features, rank]`; with rank 0, only `norm` has an effect. The features are the outputs of the
    kept units in their order. For attention they are, group after group, the queries, the key and
    the value; for an MLP all gates (if it has a gate), then all ups.
    """

    norm: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor

    @property
    def rank(self) -> int:
        """Return the rank of the correction; 0 if it has no low-rank term."""
        return self.down.shape[0]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors of the correction."""
        return self.norm, self.up, self.down


@dataclass(frozen=True, slots=True)
class LowRankCorrection:
    """A correction of a block's output projection (`o` or `down`), whose weight stays shared.

    The corrected output is `y + bias + up @ (down @ h)`, with `y` the output of the projection and
    `h` its kept inputs in their order. `bias` is `[out]`, `up` `[out, rank]`, and `down` is
    `[rank, kept]`; rank 0 is a bias alone. `entry` corrects the block's input projections. For a
    skipped block, `kept` is 0, `bias` is what it adds to the residual stream, `entry` is None.
    """

    bias: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    entry: InputCorrection | None = None

    @property
    def input_width(self) -> int:
        """Return the number of inputs that the correction was made for."""
        return self.down.shape[1]

    @property
    def rank(self) -> int:
        """Return the rank of the correction; 0 if it has no low-rank term."""
        return self.down.shape[0]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors of the correction."""
        entry = () if self.entry is None else self.entry.tensors()
        return self.bias, self.up, self.down, *entry

    def correct(
        self, linear: nn.Linear, inputs: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """Return the corrected output `[..., out]` of `linear`.

        `inputs` are its kept inputs `[..., kept]`, `output` is its output `[..., out]`.
        """
        residual = (inputs @ _cast_like(self.down, output).T) @ _cast_like(self.up, output).T
        return output + residual + _cast_like(self.bias, output)


@dataclass(frozen=True, slots=True)
class RefitCorrection:
    """A refitted output projection: `weight @ h + bias` instead of the base's kept columns.

    `h` are the kept inputs in their order, `weight` is `[out, kept]`, `bias` `[out]` is added to
    the base's bias. The weight is as large as the columns it replaces: nothing is shared.
    """

    bias: torch.Tensor
    weight: torch.Tensor

    @property
    def input_width(self) -> int:
        """Return the number of inputs that the correction was made for."""
        return self.weight.shape[1]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors of the correction."""
        return self.bias, self.weight

    def correct(
        self, linear: nn.Linear, inputs: torch.Tensor, output: torch.Tensor
    ) -> torch.Tensor:
        """Return the corrected output `[..., out]` of `linear`.

        `inputs` are its kept inputs `[..., kept]`; `output` gives the dtype and the device.
        """
        bias = _cast_like(self.bias, output)
        if linear.bias is not None:
            bias = bias + linear.bias
        return inputs @ _cast_like(self.weight, output).T + bias


def constant_correction(output: torch.Tensor) -> LowRankCorrection:
    """Return the correction of a skipped block whose mean output `[hidden]` is `output`."""
    return LowRankCorrection(output, output.new_zeros(len(output), 0), output.new_zeros(0, 0))


Correction: TypeAlias = LowRankCorrection | RefitCorrection
Corrections: TypeAlias = Mapping[Block, Correction]
"""The correction of each block: of `o` if its part is `attention`, of `down` if it is `mlp`."""


def to_tensors(corrections: Corrections) -> dict[str, torch.Tensor]:
    """Return one variant's tensors under names `layer.part.tensor`, such as `3.mlp.down`."""
    return {
        f"{block.layer}.{block.part}.{name}": tensor.contiguous()
        for block, correction in corrections.items()
        for name, tensor in _named_tensors(correction).items()
    }


def _named_tensors(correction: Correction | InputCorrection) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for field in fields(correction):
        value = getattr(correction, field.name)
        if isinstance(value, InputCorrection):
            tensors |= {
                f"{field.name}.{name}": tensor for name, tensor in _named_tensors(value).items()
            }
        elif value is not None:
            tensors[field.name] = value
    return tensors


def from_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[Block, Correction]:
    """Return the corrections that `to_tensors` named.

    Raises `RecoveryError` for other names or shapes that do not fit each other.
    """
    groups: dict[Block, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, rest = name.partition(".")
        part = next((part for part in PARTS if rest.startswith(f"{part}.")), None)
        if part is None or not (layer.isascii() and layer.isdigit()):
            raise RecoveryError(f"'{name}' is not the name of a correction")
        groups.setdefault(Block(int(layer), part), {})[rest.removeprefix(f"{part}.")] = tensor
    return {block: _from_group(block, group) for block, group in groups.items()}


def _from_group(block: Block, group: Mapping[str, torch.Tensor]) -> Correction:
    shapes = {name: tuple(tensor.shape) for name, tensor in group.items()}
    output = {name: tensor for name, tensor in group.items() if not name.startswith("entry.")}
    entry = {name.removeprefix("entry."): group[name] for name in group.keys() - output.keys()}
    match shapes:
        case {"bias": (out,), "up": (rows, rank), "down": (same, _)} if (
            len(output) == 3 and rows == out and same == rank
        ):
            if not entry:
                return LowRankCorrection(output["bias"], output["up"], output["down"])
            match shapes:
                case {
                    "entry.norm": (hidden,),
                    "entry.up": (_, inner),
                    "entry.down": (likewise, inputs),
                } if len(entry) == 3 and inner == likewise and inputs == hidden:
                    return LowRankCorrection(
                        output["bias"], output["up"], output["down"], InputCorrection(**entry)
                    )
        case {"bias": (out,), "weight": (rows, _), **other} if not other and rows == out:
            return RefitCorrection(**group)
    raise RecoveryError(f"correction of layer {block.layer} {block.part} has shapes {shapes}")


def _cast_like(tensor: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    return tensor.to(device=output.device, dtype=output.dtype)
