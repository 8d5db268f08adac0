"""Test moments of activations and the scorers that use them."""

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.statistics import calibrate
from pruners.importance import (
    ActivationNorm,
    MeanActivation,
    MomentScorer,
    RandomScores,
    WeightNorm,
    rank_from_moments,
)
from tests.support.models import FAMILIES, random_rows, tiny_model

ROWS = random_rows(4, (16,))


def record_inputs(model, rows):
    """Return the inputs of `down` and `o` of every layer, from one unpadded row at a time."""
    recorded: dict[str, list[torch.Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if name.endswith(("down_proj", "o_proj")):
            store = recorded.setdefault(name, [])
            handles.append(
                module.register_forward_pre_hook(lambda _, args, s=store: s.append(args[0][0]))
            )
    with torch.no_grad():
        for row in rows:
            model(row[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(values).double() for name, values in recorded.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_equal_brute_force_on_ragged_rows(family: str):
    model = tiny_model(family)
    rows = random_rows(7, (24, 3, 11, 40))
    statistics = calibrate(locate(model), rows)
    recorded = record_inputs(model, rows)
    for index, layer in enumerate(statistics):
        for moments, name in ((layer.ffn, "mlp.down_proj"), (layer.heads, "self_attn.o_proj")):
            values = recorded[f"model.layers.{index}.{name}"]
            assert moments.tokens == len(values) == sum(map(len, rows))
            torch.testing.assert_close(moments.mean, values.mean(0).float(), rtol=1e-4, atol=1e-5)
            second = values.square().mean(0).float()
            torch.testing.assert_close(moments.second_moment, second, rtol=1e-4, atol=1e-6)


def test_calibration_removes_its_hooks():
    model = tiny_model()
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    calibrate(locate(model), random_rows(2, (8,)))
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all("forward" not in vars(m) for m in model.modules())


def test_a_unit_without_output_is_ranked_last():
    located = locate(tiny_model())
    with torch.no_grad():
        located.layers[1].mlp.down.weight[:, 17] = 0
        located.layers[1].attention.o.weight[:, :32] = 0  # both query heads of group 0
    order = rank_from_moments(located, calibrate(located, ROWS), ActivationNorm())
    assert order.ffn[1, -1] == 17
    assert order.kv[1].tolist() == [1, 0]


@pytest.mark.parametrize(
    "scorer", [ActivationNorm(), MeanActivation(), WeightNorm(), RandomScores(0)]
)
def test_orders_are_permutations(scorer: MomentScorer):
    located = locate(tiny_model())
    order = rank_from_moments(located, calibrate(located, ROWS), scorer)
    assert torch.equal(order.ffn.sort(1).values, torch.arange(96).expand(3, -1))
    assert torch.equal(order.kv.sort(1).values, torch.arange(2).expand(3, -1))


def test_activation_norm_equals_its_formula():
    model = tiny_model("llama-mha")
    located = locate(model)
    rows = random_rows(3, (16,))
    layer, statistics = located.layers[2], calibrate(located, rows)[2]
    recorded = record_inputs(model, rows)
    inputs = recorded["model.layers.2.self_attn.o_proj"]
    weight = layer.attention.o.weight.double()
    expected = [
        sum(
            inputs[:, j].square().mean().sqrt() * weight[:, j].square().sum().sqrt()
            for j in range(16 * head, 16 * head + 16)
        )
        for head in range(4)
    ]
    scores = ActivationNorm().kv(layer, statistics, located.shape)
    torch.testing.assert_close(scores.double(), torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_weight_norm_counts_all_weights_of_a_unit():
    layer = locate(tiny_model()).layers[0]
    a, mlp = layer.attention, layer.mlp
    shape = locate(tiny_model()).shape
    ffn = WeightNorm().ffn(layer, None)
    unit = torch.cat([mlp.gate.weight[9], mlp.up.weight[9], mlp.down.weight[:, 9]])
    torch.testing.assert_close(ffn[9], unit.norm())
    group = torch.cat(
        [
            a.q.weight[32:].flatten(),
            a.k.weight[16:].flatten(),
            a.v.weight[16:].flatten(),
            a.o.weight[:, 32:].flatten(),
        ]
    )
    torch.testing.assert_close(WeightNorm().kv(layer, None, shape)[1], group.norm())


def test_random_scores_are_equal_for_equal_seeds():
    located = locate(tiny_model())
    statistics = calibrate(located, random_rows(2, (8,)))
    first, again, other = (
        rank_from_moments(located, statistics, RandomScores(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.ffn, again.ffn)
    assert not torch.equal(first.ffn, other.ffn)
