"""Test that reordering units does not change what a model computes."""

import pytest
import torch

from pruners.architecture import locate
from pruners.realization.order import identity_order, reorder_units
from tests.support.models import FAMILIES, logits, random_order, random_rows, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_reordered_model_equals_base(family: str):
    model = tiny_model(family)
    located = locate(model)
    rows = random_rows(2, (24,))
    before = logits(model, rows)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    reorder_units(located, random_order(located.shape, seed=1))

    moved = [n for n, t in model.state_dict().items() if not torch.equal(t, weights[n])]
    assert any("down_proj" in name for name in moved)
    assert any("o_proj" in name for name in moved)
    torch.testing.assert_close(logits(model, rows), before, rtol=1e-4, atol=1e-4)


def test_the_identity_order_changes_no_weight():
    model = tiny_model()
    located = locate(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    reorder_units(located, identity_order(located.shape))
    assert all(torch.equal(t, weights[n]) for n, t in model.state_dict().items())
