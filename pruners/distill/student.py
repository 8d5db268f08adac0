"""A variant as a small model: frozen weights of the base, and trained tensors beside them.

The model is a slice, so that training costs what the variant costs; what is not cut shares memory
with the base.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pruners.architecture import SERVED_FAMILIES, LocatedLayer, LocatedModel
from pruners.correction import Correction, RecoveryError, RefitCorrection
from pruners.data.rows import TokenBatch
from pruners.distill.options import TrainingOptions
from pruners.distill.trained_block import TrainedBlock
from pruners.realization.mask import constant_output_hook
from pruners.realization.order import Order
from pruners.realization.slice import CopyMemo, slice_into
from pruners.variant import PARTS, Block, VariantSpec


class Student(nn.Module):
    """One variant in training, which starts from its `corrections`.

    Constants of skipped blocks are not trained, as the bias of an earlier block can do the same.
    Raises `RecoveryError` for families that are not served and for materialised corrections.
    """

    def __init__(
        self,
        located: LocatedModel,
        spec: VariantSpec,
        order: Order,
        corrections: Mapping[Block, Correction],
        options: TrainingOptions,
    ) -> None:
        super().__init__()
        if located.family not in SERVED_FAMILIES:
            raise RecoveryError(f"models of family '{located.family}' are not trained")
        if any(isinstance(correction, RefitCorrection) for correction in corrections.values()):
            raise RecoveryError(f"variant '{spec.name}' has materialised matrices, which stay")
        self.spec = spec
        copies: CopyMemo = {id(tensor): tensor for tensor in located.model.parameters()}
        self._model = [slice_into(copies, located, spec, order)]  # hidden: nothing of it is trained
        generator = torch.Generator().manual_seed(options.seed)
        self.blocks = nn.ModuleDict()
        start: list[torch.Tensor] = []  # added to the input of the first layer that is kept
        before: nn.Module | None = None
        for index, layer in enumerate(located.layers):
            if spec.kv_groups[index] == spec.ffn[index] == 0:
                for part in PARTS:
                    bias = _constant(corrections, Block(index, part))
                    if bias is not None and before is None:
                        start.append(layer.residual_scale * bias)
                    elif bias is not None and before is not None:
                        before.register_forward_hook(_add_bias(layer.residual_scale * bias))
                continue
            if before is None and start:
                first: nn.Module = copies[id(layer.module)]
                first.register_forward_pre_hook(_add_to_input(sum(start, torch.zeros(()))))
            before = copies[id(layer.module)]
            for part in PARTS:
                block = Block(index, part)
                if spec.width(block) == 0:
                    _add_constant(copies, layer, block, _constant(corrections, block))
                    continue
                correction = corrections.get(block)
                assert not isinstance(correction, RefitCorrection)
                units = (order.kv if part == "attention" else order.ffn)[index][: spec.width(block)]
                trained = TrainedBlock(located, block, units, correction, options, generator)
                trained.attach(copies)
                self.blocks[f"{index}_{part}"] = trained

    def hidden(self, batch: TokenBatch) -> torch.Tensor:
        """Return the input of the head, `[rows, length, hidden]`."""
        body: Any = self._model[0].base_model
        output = body(batch.tokens.to(body.device), use_cache=False)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def corrections(self, before: Mapping[Block, Correction]) -> dict[Block, Correction]:
        """Return copies of what was trained, and what `before` holds for skipped blocks."""
        corrections = {
            block: correction for block, correction in before.items() if self.spec.width(block) == 0
        }
        for trained in self.blocks.values():
            assert isinstance(trained, TrainedBlock)
            corrections[trained.block] = trained.correction()
        return corrections


def _constant(corrections: Mapping[Block, Correction], block: Block) -> torch.Tensor | None:
    return corrections[block].bias if block in corrections else None


def _add_bias(bias: torch.Tensor) -> Any:  # noqa: ANN401
    return lambda module, args, output: output + bias.to(output)


def _add_to_input(bias: torch.Tensor) -> Any:  # noqa: ANN401
    return lambda module, args: (args[0] + bias.to(args[0]), *args[1:])


def _add_constant(
    copies: CopyMemo, layer: LocatedLayer, block: Block, bias: torch.Tensor | None
) -> None:
    """Hook a skipped block, in a layer that is not skipped whole, to add its constant if any."""
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
