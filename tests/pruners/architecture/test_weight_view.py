"""Test views of projections that are stored transposed or packed."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from pruners.architecture import locate, stored_module
from pruners.architecture.weight_view import Conv1DView, LinearView, OutputView
from tests.support.models import logits, random_rows, tiny_model


@pytest.fixture(params=[Conv1DView, LinearView])
def packed(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(0)
    source = Conv1D(12, 5) if request.param is Conv1DView else torch.nn.Linear(5, 12)
    torch.nn.init.normal_(source.bias)
    return source


def view_of(packed: torch.nn.Module) -> OutputView:
    return (Conv1DView if isinstance(packed, Conv1D) else LinearView)(packed, 4, 8)


def rows_of(packed: torch.nn.Module) -> torch.Tensor:
    return packed.weight.T if isinstance(packed, Conv1D) else packed.weight


def test_a_view_computes_its_columns_of_the_module(packed: torch.nn.Module):
    view, x = view_of(packed), torch.randn(3, 5)
    assert (view.in_features, view.out_features, tuple(view.weight.shape)) == (5, 4, (4, 5))
    torch.testing.assert_close(view(x), packed(x)[:, 4:8])
    torch.testing.assert_close(x @ view.weight.T + view.bias, packed(x)[:, 4:8])
    assert not list(view.parameters())
    assert stored_module(view) is packed


def test_writing_to_a_view_changes_the_model(packed: torch.nn.Module):
    view = view_of(packed)
    with torch.no_grad():
        view.weight[1] = 7
        view.bias[2] = 9
    assert rows_of(packed)[5].tolist() == [7] * 5
    assert packed.bias[6] == 9


def test_hooks_read_and_replace_only_their_columns(packed: torch.nn.Module):
    view, x = view_of(packed), torch.randn(3, 5)
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


@pytest.mark.parametrize("family", ["gpt2", "phi3"])
def test_views_cover_a_packed_projection(family: str):
    model = tiny_model(family)
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
