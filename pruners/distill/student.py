"""A variant as a small model whose weights are the base's, frozen, and what is trained beside them.

It is a slice, so that training costs what the variant costs; what is not cut is the base's own
memory. Trained tensors are kept in fp32 in the slice's sequence of units, and handed out in the
artefact's.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from pruners.architecture import SERVED_FAMILIES, LocatedLayer, LocatedModel
from pruners.correction import (
    Correction,
    InputCorrection,
    LowRankCorrection,
    RecoveryError,
    RefitCorrection,
)
from pruners.data.rows import TokenBatch
from pruners.realization.mask import constant_output_hook, split_input_correction
from pruners.realization.order import Order, feature_indices
from pruners.realization.slice import CopyMemo, slice_into
from pruners.variant import PARTS, Block, VariantSpec

Tier = Literal["norms", "residuals", "lora"]
"""`norms` trains biases and norms; `residuals` also the low ranks behind what is cut, which a
variant has already; `lora` gives every projection low ranks and trains them all."""


class Student(nn.Module):
    """One variant in training.

    Starts where `corrections` are. Constants of skipped blocks stay: a bias behind an earlier
    block does the same. Raises `RecoveryError` for families that are not served and for
    materialised corrections.
    """

    def __init__(
        self,
        located: LocatedModel,
        spec: VariantSpec,
        order: Order,
        corrections: Mapping[Block, Correction],
        tier: Tier = "norms",
        rank: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if located.family not in SERVED_FAMILIES:
            raise RecoveryError(f"models of family '{located.family}' are not trained")
        if any(isinstance(correction, RefitCorrection) for correction in corrections.values()):
            raise RecoveryError(f"variant '{spec.name}' has materialised matrices, which stay")
        self.spec = spec
        copies: CopyMemo = {id(tensor): tensor for tensor in located.model.parameters()}
        self._model = [slice_into(copies, located, spec, order)]  # hidden: nothing of it is trained
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleDict()
        start: torch.Tensor | None = None
        before: nn.Module | None = None
        for index, layer in enumerate(located.layers):
            if spec.kv_groups[index] == spec.ffn[index] == 0:
                for part in PARTS:
                    bias = _constant(corrections, Block(index, part))
                    if bias is not None and before is None:
                        start = bias if start is None else start + bias
                    elif bias is not None and before is not None:
                        before.register_forward_hook(_plus(bias))
                continue
            before = copies[id(layer.module)]
            for part in PARTS:
                block = Block(index, part)
                if spec.width(block) == 0:
                    _skip(copies, layer, block, _constant(corrections, block))
                    continue
                given = corrections.get(block)
                assert not isinstance(given, RefitCorrection)
                units = (order.kv if part == "attention" else order.ffn)[index][: spec.width(block)]
                tuned = _Tuned(located, block, units, given, tier, rank, generator)
                tuned.attach(copies)
                self.blocks[f"{index}_{part}"] = tuned
        if start is not None:
            copies[id(located.embed)].register_forward_hook(_plus(start))

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """What the variant hands to its head, `[rows, length, hidden]`."""
        body: Any = self._model[0].base_model
        found: torch.Tensor = body(batch.tokens.to(body.device), use_cache=False).last_hidden_state
        return found

    def corrections(self, before: Mapping[Block, Correction]) -> dict[Block, Correction]:
        """What was trained, and what `before` holds for skipped blocks. Tensors are copies."""
        found = {
            block: correction for block, correction in before.items() if self.spec.width(block) == 0
        }
        for tuned in self.blocks.values():
            assert isinstance(tuned, _Tuned)
            found[tuned.block] = tuned.correction()
        return found


class _Tuned(nn.Module):
    """What is trained of one sub-block. Ranks 0 hold nothing."""

    def __init__(
        self,
        located: LocatedModel,
        block: Block,
        units: torch.Tensor,
        given: LowRankCorrection | None,
        tier: Tier,
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.block = block
        shape, layer = located.shape, located.layers[block.layer]
        attention = block.part == "attention"
        self._layer = layer
        self._decoder = located
        size = shape.queries_per_group * shape.head_dim if attention else 1
        place = units.argsort()  # of each unit of the slice, in the artefact's order
        self._inputs = feature_indices(place, size)
        self._units = torch.arange(len(units))
        per_unit = (shape.queries_per_group + 2) * shape.head_dim if attention else 1
        sides = 1 if attention or not shape.gated else 2
        self._features = torch.cat(
            [feature_indices(place, per_unit) + side * len(units) for side in range(sides)]
        )
        entry = None if given is None else given.entry
        hidden = shape.hidden
        self.bias = _parameter(torch.zeros(hidden) if given is None else given.bias)
        self.norm = _parameter(torch.ones(hidden) if entry is None else entry.norm)
        outer = _factors(given, hidden, len(self._inputs))
        inner = _factors(entry, len(self._features), hidden)
        self._kept = given if tier == "norms" else None
        trained = tier != "norms"
        if tier == "lora" or (trained and outer[0].shape[1]):
            outer = _with_rank(*outer, rank, generator)
        if tier == "lora":
            inner = _with_rank(*inner, rank, generator)
        self.up = _parameter(outer[0], trained)
        self.down = _parameter(outer[1][:, self._inputs], trained)
        self.entry_up = _parameter(inner[0][self._features], trained)
        self.entry_down = _parameter(inner[1], trained)

    def attach(self, copies: CopyMemo) -> None:
        """Hooks this block of the slice, whose modules are found by the base's in `copies`."""
        layer, located = self._layer, self._decoder
        attention = self.block.part == "attention"
        norm = layer.attention_norm if attention else layer.mlp_norm
        copies[id(norm)].register_forward_hook(
            lambda module, args, output: output * self.norm.to(output.dtype)
        )
        output = layer.attention.o if attention else layer.mlp.down
        copies[id(output)].register_forward_hook(self._correct)
        if self.entry_up.shape[1]:
            # The rows of `up` that belong to each projection, by their numbers.
            numbers = torch.arange(len(self.entry_up))
            parts = split_input_correction(located, self.block, self._units, numbers[:, None])
            for linear, _, rows in parts:
                copies[id(linear)].register_forward_hook(self._entering(rows[:, 0]))

    def _correct(
        self, module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor:
        output = output + self.bias.to(output.dtype)
        if self.up.shape[1]:
            inner = args[0] @ self.down.to(output.dtype).T
            output = output + inner @ self.up.to(output.dtype).T
        return output

    def _entering(self, rows: torch.Tensor) -> Any:  # noqa: ANN401
        def add(
            module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor
        ) -> torch.Tensor:
            inner = args[0] @ self.entry_down.to(output.dtype).T
            return output + inner @ self.entry_up[rows].to(output.dtype).T

        return add

    def correction(self) -> LowRankCorrection:
        """In the artefact's order of units."""

        def taken(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().cpu().clone()

        up, down = taken(self.up), torch.empty_like(self.down, device="cpu")
        down[:, self._inputs] = taken(self.down)
        entry_up = torch.empty_like(self.entry_up, device="cpu")
        entry_up[self._features] = taken(self.entry_up)
        if self._kept is not None:  # not trained: the tensor that other variants have too
            up, down = self._kept.up, self._kept.down
        entry = InputCorrection(taken(self.norm), entry_up, taken(self.entry_down))
        return LowRankCorrection(taken(self.bias), up, down, entry)


def _parameter(tensor: torch.Tensor, trained: bool = True) -> nn.Parameter:
    return nn.Parameter(tensor.detach().float().clone(), trained)


def _factors(
    given: LowRankCorrection | InputCorrection | None, outputs: int, inputs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    if given is None:
        return torch.zeros(outputs, 0), torch.zeros(0, inputs)
    return given.up, given.down


def _with_rank(
    up: torch.Tensor, down: torch.Tensor, rank: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """The product's best approximation of this rank, its factors of equal size.

    Where the product has less rank, `up` is 0 and `down` random, as in LoRA (Hu et al., 2021).
    """
    start = torch.randn(rank, down.shape[1], generator=generator) / down.shape[1] ** 0.5
    wide = torch.zeros(len(up), rank)
    if up.shape[1]:
        # The SVD of a product of thin factors, through their triangles.
        left, upper = torch.linalg.qr(up.float())
        right, lower = torch.linalg.qr(down.float().T)
        u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        held = min(rank, len(s))
        root = s[:held].sqrt()
        wide[:, :held] = left @ u[:, :held] * root
        start[:held] = (right @ v[:held].T * root).T
    return wide, start


def _constant(corrections: Mapping[Block, Correction], block: Block) -> torch.Tensor | None:
    return corrections[block].bias if block in corrections else None


def _plus(bias: torch.Tensor) -> Any:  # noqa: ANN401
    return lambda module, args, output: output + bias.to(output)


def _skip(copies: CopyMemo, layer: LocatedLayer, block: Block, bias: torch.Tensor | None) -> None:
    """Gives a skipped block of a layer that stays its constant, if it has one."""
    if bias is None:
        return
    attention = block.part == "attention"
    if attention and layer.attention_out_norm is None:
        # Nothing behind the module is called, so its own first output is what is added.
        copies[id(layer.attention.module)].register_forward_hook(
            lambda module, args, output: (output[0] + bias.to(output[0]), *output[1:])
        )
        return
    join = layer.attention_output if attention else layer.mlp_output
    copies[id(join)].register_forward_hook(constant_output_hook(bias))
