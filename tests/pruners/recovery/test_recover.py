import copy

import pytest
import torch
from torch import nn

from pruners.architecture import locate
from pruners.correction import RecoveryError, RefitCorrection
from pruners.evaluation.evaluate import evaluate, variant_forward
from pruners.realization.mask import apply_mask
from pruners.recovery import RecoveryOptions, recover
from pruners.variant import Block, VariantSpec
from tests.support.models import (
    FAMILIES,
    PRUNED_FAMILIES,
    logits,
    random_order,
    random_rows,
    tiny_model,
)

ROWS = random_rows(24, (24, 9, 40))
NARROW = VariantSpec("narrow", (1, 2, 0), (64, 96, 32))
BLOCKS = [Block(0, "attention"), Block(0, "mlp"), Block(2, "attention"), Block(2, "mlp")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "options", [RecoveryOptions(0), RecoveryOptions(4), RecoveryOptions(materialised=True)]
)
def test_a_corrected_mask_is_the_model_with_new_weights(family: str, options: RecoveryOptions):
    model = tiny_model(family)
    located = locate(model)
    shape, order = located.shape, random_order(located.shape)
    groups = (1 if shape.cuts_groups else shape.kv_groups, shape.kv_groups, 0)
    spec = VariantSpec("narrow", groups, NARROW.ffn)
    (found,) = recover(located, [spec], order, ROWS, options)
    assert list(found.corrections) == (BLOCKS if shape.cuts_groups else BLOCKS[1:])
    rebuilt = copy.deepcopy(model)
    queries = shape.heads // shape.kv_groups * shape.head_dim
    for block, correction in found.corrections.items():
        layer = rebuilt.model.layers[block.layer]
        if correction.input_width == 0:
            join = locate(rebuilt).layers[block.layer].attention_output
            join.register_forward_hook(lambda m, a, out, c=correction: 0 * out + c.bias)
            continue
        if block.part == "attention":
            linear, group = layer.self_attn.o_proj, int(order.kv[block.layer, 0])
            kept = list(range(group * queries, (group + 1) * queries))
        else:
            linear, width = layer.mlp.down_proj, spec.ffn[block.layer]
            kept = order.ffn[block.layer, :width].tolist()
        weight = linear.weight.data[:, kept]
        if isinstance(correction, RefitCorrection):
            weight = correction.weight
        else:
            weight = weight + correction.up @ correction.down
        linear.weight.data.zero_()
        linear.weight.data[:, kept] = weight
        before = 0 if linear.bias is None else linear.bias.data
        linear.bias = nn.Parameter(before + correction.bias)
    rows = random_rows(2, (24,), seed=5)
    expected = logits(rebuilt, rows)
    before = logits(model, rows)
    with apply_mask(located, spec, order, found.corrections):
        torch.testing.assert_close(logits(model, rows), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(model, rows), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_a_skipped_block_is_made_up_for_by_the_mean_of_what_it_adds(family: str):
    model = tiny_model(family)
    located = locate(model)
    full = located.shape.kv_groups
    spec = VariantSpec("skip", (full, 0, full), (96, 0, 0))
    rows = random_rows(4, (24,))
    (found,) = recover(located, [spec], random_order(located.shape), rows, RecoveryOptions())
    blocks = [Block(1, "attention"), Block(1, "mlp"), Block(2, "mlp")]
    assert list(found.corrections) == blocks
    for block in blocks:
        layer = located.layers[block.layer]
        seen = []
        join = layer.attention_output if block.part == "attention" else layer.mlp_output
        hook = join.register_forward_hook(lambda m, a, out, s=seen: s.append(out))
        for index in (1, 2, 3):  # the first row is held out
            logits(model, [rows[index]])
        hook.remove()
        mean = torch.cat([out.flatten(0, -2) for out in seen]).mean(0)
        bias = found.corrections[block].bias
        torch.testing.assert_close(bias, mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_full_rank_is_the_materialised_refit_in_every_family(family: str):
    model = tiny_model(family)
    located = locate(model)
    shape, order = located.shape, random_order(located.shape)
    fewer = 1 if shape.cuts_groups else shape.kv_groups
    spec = VariantSpec("narrow", (fewer, shape.kv_groups, fewer), (64, 96, 32))
    rows = random_rows(2, (24,), seed=5)
    outputs = []
    for recipe in (RecoveryOptions(rank=64), RecoveryOptions(materialised=True)):
        (found,) = recover(located, [spec], order, random_rows(40, (60,)), recipe)
        with apply_mask(located, spec, order, found.corrections):
            outputs.append(logits(model, rows))
        assert all(errors.refit < errors.none for errors in found.errors)
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-3)


def redundant_model() -> nn.Module:
    """In every layer, what neurons 64.. would say can be said by the first 64."""
    model = tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate_proj.weight[64:] = layer.mlp.gate_proj.weight[:32]
            layer.mlp.up_proj.weight[64:] = 0.5 * layer.mlp.up_proj.weight[:32]
    return model


def test_redundant_neurons_are_made_up_for():
    model = redundant_model()
    located = locate(model)
    order = random_order(located.shape)
    order.ffn[:] = torch.arange(96)
    spec = VariantSpec("narrow", (2, 2, 2), (64, 64, 64))
    options = RecoveryOptions(materialised=True)
    (found,) = recover(located, [spec], order, ROWS, options)
    for errors in found.errors:
        assert errors.none > 0.05
        assert errors.refit < 1e-3 * errors.none
    rows = random_rows(4, (30,), seed=9)

    readers = {
        "plain": variant_forward(located, lambda: apply_mask(located, spec, order)),
        "better": variant_forward(
            located, lambda: apply_mask(located, spec, order, found.corrections)
        ),
    }
    quality = evaluate(located, readers, rows).quality
    assert quality["better"].kl < 0.05 * quality["plain"].kl


def test_each_step_buys_something_and_more_rank_buys_more():
    located = locate(tiny_model())
    order = random_order(located.shape)
    rows = random_rows(60, (60,))
    steps = []
    for rank in (0, 8, 64):
        (found,) = recover(located, [NARROW], order, rows, RecoveryOptions(rank))
        steps.append([errors.low_rank for errors in found.errors])
        for errors in found.errors:
            assert errors.refit < errors.bias < errors.none
            assert (
                errors.inputs
                == {"attention": 32, "mlp": NARROW.ffn[errors.block.layer]}[errors.block.part]
            )
    for none, some, full in zip(*steps, strict=True):
        assert full < some < none
    assert steps[0] == [errors.bias for errors in found.errors]
    assert steps[2] == pytest.approx([errors.refit for errors in found.errors])


def test_many_variants_share_a_pass_and_repeat_themselves():
    located = locate(tiny_model())
    order = random_order(located.shape)
    wider = VariantSpec("wider", (2, 2, 2), (64, 64, 64))
    both = recover(located, [NARROW, wider], order, ROWS, RecoveryOptions(4))
    (alone,) = recover(located, [wider], order, ROWS, RecoveryOptions(4))
    assert alone.errors == both[1].errors
    for block, correction in alone.corrections.items():
        assert torch.equal(correction.bias, both[1].corrections[block].bias)


def test_a_single_row_cannot_be_held_out():
    located = locate(tiny_model())
    with pytest.raises(RecoveryError, match="at least 2"):
        recover(located, [NARROW], random_order(located.shape), ROWS[:1], RecoveryOptions())
