"""Test that masks compute what a smaller model computes, and leave no trace."""

import copy

import pytest
import torch
from torch import nn

from pruners.architecture import LocatedModel, locate
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order, identity_order, reorder_units
from pruners.variant import VariantSpec, base_spec
from tests.support.models import FAMILIES, logits, random_order, random_rows, tiny_model

ROWS = random_rows(2, (24,))


def narrow(linear: nn.Linear, out: list[int] | None, inp: list[int] | None) -> None:
    """Keep these outputs and inputs of a linear module, by list indexing."""
    weight, bias = linear.weight.data, linear.bias
    if out is not None:
        weight = weight[out]
        linear.bias = None if bias is None else nn.Parameter(bias.data[out])
    if inp is not None:
        weight = weight[:, inp]
    linear.weight = nn.Parameter(weight)


def cut_projections(located: LocatedModel, spec: VariantSpec, order: Order) -> None:
    """Cut every projection, independently of the library's own slices."""
    shape, dim = located.shape, located.shape.head_dim
    per_group = shape.heads // shape.kv_groups
    for index, layer in enumerate(located.layers):
        neurons = order.ffn[index][: spec.ffn[index]].tolist()
        groups = order.kv[index][: spec.kv_groups[index]].tolist()
        heads = [group * per_group + i for group in groups for i in range(per_group)]
        query = [head * dim + i for head in heads for i in range(dim)]
        key = [group * dim + i for group in groups for i in range(dim)]
        narrow(layer.mlp.gate, neurons, None)
        narrow(layer.mlp.up, neurons, None)
        narrow(layer.mlp.down, None, neurons)
        narrow(layer.attention.q, query, None)
        narrow(layer.attention.k, key, None)
        narrow(layer.attention.v, key, None)
        narrow(layer.attention.o, None, query)
        if layer.attention.norms_all_heads:
            layer.attention.q_norm.weight.data = layer.attention.q_norm.weight.data[query]
            layer.attention.k_norm.weight.data = layer.attention.k_norm.weight.data[key]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi3"])
def test_mask_equals_explicit_slicing(family: str):
    model = tiny_model(family)
    located = locate(model)
    order = random_order(located.shape)
    full = located.shape.kv_groups
    groups = (full, 1, full - 1) if located.shape.cuts_groups else (full, full, full)
    spec = VariantSpec("narrow", groups, (32, 96, 7))
    sliced = tiny_model(family)
    cut_projections(locate(sliced), spec, order)

    with apply_mask(located, spec, order):
        masked = logits(model, ROWS)

    torch.testing.assert_close(masked, logits(sliced, ROWS), rtol=1e-4, atol=1e-4)


def test_prefix_of_reordered_model_equals_mask_of_base():
    model, moved = tiny_model(), tiny_model()
    shape = locate(model).shape
    order = random_order(shape)
    reorder_units(locate(moved), order)
    spec = VariantSpec("narrow", (1, 2, 1), (32, 64, 96))
    with (
        apply_mask(locate(model), spec, order),
        apply_mask(locate(moved), spec, identity_order(shape)),
    ):
        torch.testing.assert_close(logits(moved, ROWS), logits(model, ROWS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_width_zero_is_the_layer_removed(family: str):
    model = tiny_model(family)
    located = locate(model)
    full = located.shape.kv_groups
    spec = VariantSpec("shallow", (full, 0, full), (96, 0, 96))
    shorter = copy.deepcopy(model)
    shorter.model.layers[1].forward = lambda hidden, **_: hidden

    with apply_mask(located, spec, identity_order(located.shape)):
        masked = logits(model, ROWS)

    assert torch.equal(masked, logits(shorter, ROWS))


@pytest.mark.parametrize("family", FAMILIES)
def test_full_width_is_the_base_bit_for_bit(family: str):
    model = tiny_model(family)
    located = locate(model)
    before = logits(model, ROWS)
    with apply_mask(located, base_spec(located.shape), random_order(located.shape)):
        assert torch.equal(logits(model, ROWS), before)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_removed_after_an_exception():
    model = tiny_model()
    located = locate(model)
    before, installed = logits(model, ROWS), hooks(model)
    spec = VariantSpec("narrow", (1, 0, 2), (32, 0, 64))

    with (
        pytest.raises(KeyError, match="True"),
        apply_mask(located, spec, identity_order(located.shape)),
    ):
        raise KeyError(hooks(model) > installed)
    assert hooks(model) == installed
    assert torch.equal(logits(model, ROWS), before)


def test_a_masked_unit_may_be_infinite():
    model = tiny_model()
    located = locate(model)
    with torch.no_grad():
        located.layers[0].mlp.up.weight[5] = float("inf")
    order = identity_order(located.shape)
    order.ffn[0] = order.ffn[0].roll(-6)  # neuron 5 is the least important
    with apply_mask(located, VariantSpec("narrow", (2, 2, 2), (64, 96, 96)), order):
        assert logits(model, ROWS).isfinite().all()


def test_a_spec_of_another_model_is_refused():
    located = locate(tiny_model())
    spec = VariantSpec("wide", (2, 2, 2), (96, 96, 128))
    with (
        pytest.raises(ValueError, match="ffn outside"),
        apply_mask(located, spec, identity_order(located.shape)),
    ):
        pass
