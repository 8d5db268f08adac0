"""What is trained of one sub-block, beside the frozen weights of its slice."""

from collections.abc import Callable

import torch
from torch import nn

from pruners.architecture import LocatedModel
from pruners.correction import InputCorrection, LowRankCorrection
from pruners.distill.options import TrainingOptions
from pruners.realization.mask import hook_block_input, split_input_correction
from pruners.realization.order import feature_indices
from pruners.realization.slice import CopyMemo
from pruners.variant import Block

_Hook = Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], torch.Tensor]


class TrainedBlock(nn.Module):
    """The trained tensors of one sub-block, all fp32; a low rank of 0 is an empty tensor.

    `bias` and `norm` are `[hidden]`; `up` `[hidden, rank]` and `down` `[rank, inputs]` correct the
    output projection, `entry_up` `[features, rank]` and `entry_down` `[rank, hidden]` the input
    projections. Inputs and features belong to `units` `[width]`, the most important first. A slice
    has them in the base's sequence, and so have the tensors here; `correction` returns them in the
    order of `units`.
    """

    def __init__(
        self,
        located: LocatedModel,
        block: Block,
        units: torch.Tensor,
        correction: LowRankCorrection | None,
        options: TrainingOptions,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.block = block
        self._located = located
        shape = located.shape
        attention = block.part == "attention"
        size = shape.queries_per_group * shape.head_dim if attention else 1
        place = units.argsort()  # where each unit of the slice stands in `units`
        self._inputs = feature_indices(place, size)
        self._units = torch.arange(len(units))
        per_unit = (shape.queries_per_group + 2) * shape.head_dim if attention else 1
        sides = 1 if attention or not shape.gated else 2
        self._features = torch.cat(
            [feature_indices(place, per_unit) + side * len(units) for side in range(sides)]
        )
        entry = None if correction is None else correction.entry
        hidden = shape.hidden
        self.bias = _parameter(torch.zeros(hidden) if correction is None else correction.bias)
        self.norm = _parameter(torch.ones(hidden) if entry is None else entry.norm)
        outer = _factors(correction, hidden, len(self._inputs))
        inner = _factors(entry, len(self._features), hidden)
        self._untrained = correction if options.tier == "norms" else None
        trained = options.tier != "norms"
        if options.tier == "lora" or (trained and outer[0].shape[1]):
            outer = _with_rank(*outer, options.rank, generator)
        if options.tier == "lora":
            inner = _with_rank(*inner, options.rank, generator)
        self.up = _parameter(outer[0], trained)
        self.down = _parameter(outer[1][:, self._inputs], trained)
        self.entry_up = _parameter(inner[0][self._features], trained)
        self.entry_down = _parameter(inner[1], trained)

    def attach(self, copies: CopyMemo) -> None:
        """Hook this block of the slice; `copies` finds its modules by the ids of the base's."""
        layer = self._located.layers[self.block.layer]
        norm, inputs, output = layer.mlp_norm, layer.mlp.inputs, layer.mlp.down
        if self.block.part == "attention":
            norm, inputs, output = layer.attention_norm, layer.attention.inputs, layer.attention.o
        hook_block_input(
            None if norm is None else copies[id(norm)],
            [copies[id(projection)] for projection in inputs],
            lambda normed: normed * self.norm.to(normed.dtype),
        )
        copies[id(output)].register_forward_hook(self._correct_output)
        if self.entry_up.shape[1]:
            # The rows of `entry_up` that belong to each projection, by their numbers.
            numbers = torch.arange(len(self.entry_up))
            parts = split_input_correction(self._located, self.block, self._units, numbers[:, None])
            for linear, _, rows in parts:
                copies[id(linear)].register_forward_hook(self._input_hook(rows[:, 0]))

    def _correct_output(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        output = output + self.bias.to(output.dtype)
        if self.up.shape[1]:
            inner = args[0] @ self.down.to(output.dtype).T
            output = output + inner @ self.up.to(output.dtype).T
        return output

    def _input_hook(self, rows: torch.Tensor) -> _Hook:
        """Return a hook of an input projection whose features are `rows` of `entry_up`."""

        def add(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            inner = args[0] @ self.entry_down.to(output.dtype).T
            return output + inner @ self.entry_up[rows].to(output.dtype).T

        return add

    def correction(self) -> LowRankCorrection:
        """Return copies of the tensors, inputs and features in the order of importance."""

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().cpu().clone()

        up, down = copied(self.up), torch.empty_like(self.down, device="cpu")
        down[:, self._inputs] = copied(self.down)
        entry_up = torch.empty_like(self.entry_up, device="cpu")
        entry_up[self._features] = copied(self.entry_up)
        if self._untrained is not None:  # the same tensors, so that variants still share them
            up, down = self._untrained.up, self._untrained.down
        entry = InputCorrection(copied(self.norm), entry_up, copied(self.entry_down))
        return LowRankCorrection(copied(self.bias), up, down, entry)


def _parameter(tensor: torch.Tensor, trained: bool = True) -> nn.Parameter:
    return nn.Parameter(tensor.detach().float().clone(), trained)


def _factors(
    correction: LowRankCorrection | InputCorrection | None, outputs: int, inputs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `up` `[outputs, rank]` and `down` `[rank, inputs]`, of rank 0 without a correction."""
    if correction is None:
        return torch.zeros(outputs, 0), torch.zeros(0, inputs)
    return correction.up, correction.down


def _with_rank(
    up: torch.Tensor, down: torch.Tensor, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best approximation of `up @ down` of this rank, its factors of equal norms.

    `up` is `[outputs, old rank]`, `down` `[old rank, inputs]`. If the old rank is lower, further
    columns of `up` are 0 and further rows of `down` random, as in LoRA (Hu et al. 2021, arXiv
    2106.09685).
    """
    start = torch.randn(rank, down.shape[1], generator=generator) / down.shape[1] ** 0.5
    wide = torch.zeros(len(up), rank)
    if up.shape[1]:
        # The SVD of a product of thin factors, through their triangles.
        left, upper = torch.linalg.qr(up.float())
        right, lower = torch.linalg.qr(down.float().T)
        u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        shared = min(rank, len(s))
        root = s[:shared].sqrt()
        wide[:, :shared] = left @ u[:, :shared] * root
        start[:shared] = (right @ v[:shared].T * root).T
    return wide, start
