"""Test layers computed one at a time on another device: here the CPU under another name."""

import dataclasses

import pytest
import torch
from torch import nn

from pruners.architecture import locate, stored_module
from pruners.builder.pipeline import build
from pruners.builder.recipe import BuildError, Recipe
from pruners.builder.steps import BuildOptions, BuildRows
from pruners.calibration.layer_replay import final_hidden
from pruners.calibration.offload import offload_layers
from pruners.data.rows import pad_rows
from pruners.realization.mask import apply_mask
from pruners.variant import VariantSpec
from tests.support.models import PRUNED_FAMILIES, random_order, random_rows, tiny_model

OTHER_DEVICE = torch.device("cpu:0")
ROWS = random_rows(3, (12, 7))
RECIPE = Recipe(ffn_keep=(0.67,), skip_layers=(1,), shares=(0.9,), kv_budgets=(), keep_all=True)


@pytest.fixture
def moves(monkeypatch: pytest.MonkeyPatch) -> list[tuple[nn.Module, torch.device]]:
    """Record to which device each module is moved, in order."""
    recorded: list[tuple[nn.Module, torch.device]] = []
    move = nn.Module.to

    def to(module: nn.Module, device: torch.device) -> nn.Module:
        recorded.append((module, device))
        return move(module, device)

    monkeypatch.setattr(nn.Module, "to", to)
    return recorded


@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_each_layer_moves_for_its_call_and_back(family, moves):
    located = locate(tiny_model(family))
    order, batch = random_order(located.shape), pad_rows(ROWS)
    groups = located.shape.kv_groups
    fewer = 1 if located.shape.cuts_groups else groups
    spec = VariantSpec("narrow", (fewer, groups, 0), (64, 96, 0))
    with torch.no_grad(), apply_mask(located, spec, order):
        expected = located.head(final_hidden(located, batch))
        with offload_layers(located, OTHER_DEVICE):
            found = located.head(final_hidden(located, batch))
    assert torch.equal(found, expected)
    home = torch.device("cpu")
    expected_moves = [
        (module, device)
        for module in (*(layer.module for layer in located.layers), stored_module(located.head))
        for device in (OTHER_DEVICE, home)
    ]
    assert moves == expected_moves
    moves.clear()
    located.head(final_hidden(located, batch))
    assert not moves


def test_a_layer_moves_back_after_a_failed_call(moves):
    located = locate(tiny_model())
    with offload_layers(located, OTHER_DEVICE), pytest.raises(TypeError):
        located.layers[0].module()
    assert [device for _, device in moves] == [OTHER_DEVICE, torch.device("cpu")]


@pytest.mark.slow
def test_offloading_does_not_change_the_artefact():
    rows = BuildRows(random_rows(6, (40,)), random_rows(2, (30,), seed=4), "random", "other")
    here, away = (
        build(tiny_model(), "mine", rows, RECIPE, BuildOptions(device=d))
        for d in (None, OTHER_DEVICE)
    )
    assert here.variants == away.variants
    assert here.table.quality == away.table.quality
    for name, corrections in here.corrections.items():
        for block, correction in corrections.items():
            pairs = zip(correction.tensors(), away.corrections[name][block].tensors(), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)


def test_scorers_with_gradients_are_refused():
    rows = BuildRows(ROWS, random_rows(1, (12,), seed=4), "random", "other")
    with pytest.raises(BuildError, match="taylor"):
        build(
            tiny_model(),
            "mine",
            rows,
            dataclasses.replace(RECIPE, importance="taylor"),
            BuildOptions(device=OTHER_DEVICE),
        )
