"""Test views of projections that are stored transposed or packed."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from pruners.architecture import locate, stored_module
from pruners.architecture.weight_view import Conv1DView
from tests.support.models import logits, random_rows, tiny_model


@pytest.fixture
def packed() -> Conv1D:
    torch.manual_seed(0)
    source = Conv1D(12, 5)
    torch.nn.init.normal_(source.bias)
    return source


def test_a_view_computes_its_columns_of_the_module(packed: Conv1D):
    view, x = Conv1DView(packed, 4, 8), torch.randn(3, 5)
    assert (view.in_features, view.out_features, tuple(view.weight.shape)) == (5, 4, (4, 5))
    torch.testing.assert_close(view(x), packed(x)[:, 4:8])
    assert not list(view.parameters())
    assert stored_module(view) is packed


def test_writing_to_a_view_changes_the_model(packed: Conv1D):
    view = Conv1DView(packed, 4, 8)
    with torch.no_grad():
        view.weight[1] = 7
        view.bias[2] = 9
    assert packed.weight[:, 5].tolist() == [7] * 5
    assert packed.bias[6] == 9


def test_hooks_read_and_replace_only_their_columns(packed: Conv1D):
    view, x = Conv1DView(packed, 4, 8), torch.randn(3, 5)
    before, outputs = packed(x), []
    watching = view.register_forward_hook(lambda module, args, output: outputs.append(output))
    zeroing = view.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    after = packed(x)
    watching.remove()
    zeroing.remove()
    torch.testing.assert_close(outputs[0], before[:, 4:8])
    assert after[:, 4:8].count_nonzero() == 0
    assert torch.equal(after[:, :4], before[:, :4])
    assert torch.equal(packed(x), before)


def test_views_of_gpt2_cover_its_packed_projection():
    model = tiny_model("gpt2")
    attention = locate(model).layers[0].attention
    rows, outputs = random_rows(1, (6,)), {}
    for name in ("q", "k", "v"):
        getattr(attention, name).register_forward_hook(
            lambda module, args, output, name=name: outputs.update({name: output})
        )
    whole = []
    stored_module(attention.q).register_forward_hook(lambda m, args, output: whole.append(output))
    logits(model, rows)
    assert torch.equal(torch.cat([outputs["q"], outputs["k"], outputs["v"]], dim=-1), whole[0])
