"""Test the scorers of neurons, KV groups, blocks and layers."""

import itertools

import pytest
import torch

from pruners.architecture import locate
from pruners.calibration.statistics import calibrate
from pruners.importance import (
    BLOCK_ORDERS,
    LAYER_ORDERS,
    SCORERS,
    CustomScorer,
    Fluctuation,
    ImportanceError,
    Taylor,
    make_scorer,
)
from pruners.importance.block_orders import (
    attention_entropy,
    block_influence,
    last_layers,
    layer_influence,
)
from pruners.importance.least_squares import eliminate
from tests.support.models import PRUNED_FAMILIES, random_rows, tiny_model

ROWS = random_rows(6, (24, 9, 16))


def zero_units(model, neuron: int = 17) -> None:
    """Set all weights of a neuron and of KV group 0 of layer 1 to zero."""
    layer = locate(model).layers[1]
    with torch.no_grad():
        for linear in (layer.mlp.gate, layer.mlp.up):
            linear.weight[neuron] = 0
        layer.mlp.down.weight[:, neuron] = 0
        layer.attention.q.weight[:32] = 0
        layer.attention.k.weight[:16] = 0
        layer.attention.v.weight[:16] = 0
        layer.attention.o.weight[:, :32] = 0


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_ranks_zero_units_last_and_gives_permutations(name: str):
    model = tiny_model()
    zero_units(model)
    order = make_scorer(name)(locate(model), ROWS).order()
    assert torch.equal(order.ffn.sort(1).values, torch.arange(96).expand(3, -1))
    assert torch.equal(order.kv.sort(1).values, torch.arange(2).expand(3, -1))
    if name != "random":
        assert order.ffn[1, -1] == 17
        assert order.kv[1].tolist() == [1, 0]


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_is_deterministic_and_does_not_change_the_model(name: str):
    model = tiny_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kind = model.config._attn_implementation
    first, again = (make_scorer(name, seed=3)(locate(model), ROWS) for _ in range(2))
    assert torch.equal(first.ffn, again.ffn)
    assert torch.equal(first.kv, again.kv)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert model.config._attn_implementation == kind


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_every_scorer_scores_every_family(family: str, name: str):
    located = locate(tiny_model(family))
    layer, shape = located.layers[1], located.shape
    with torch.no_grad():
        layer.mlp.down.weight[:, 17] = 0
    scores = make_scorer(name)(located, ROWS)
    assert scores.ffn.shape == (shape.layers, shape.ffn)
    assert scores.kv.shape == (shape.layers, shape.kv_groups)
    assert scores.ffn.isfinite().all()
    assert scores.kv.isfinite().all()
    if name in ("wanda", "flap", "taylor", "least-squares"):
        assert scores.ffn[1, 17] == scores.ffn[1].min()


@pytest.mark.parametrize("order", [*LAYER_ORDERS.values(), *BLOCK_ORDERS.values()])
@pytest.mark.parametrize("family", PRUNED_FAMILIES)
def test_every_order_by_score_is_a_permutation_in_every_family(family: str, order):
    found = order(locate(tiny_model(family)), ROWS, None)
    assert len(set(found)) == len(found) in (3, 6)  # three layers, or their blocks


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ImportanceError, match="no importance 'magic'; there are: random, l1"):
        make_scorer("magic")


def test_fluctuation_of_a_constant_activation_is_zero():
    model = tiny_model()
    layer = locate(model).layers[0]
    statistics = calibrate(locate(model), ROWS)[0]
    scores = Fluctuation().ffn(layer, statistics)
    expected = statistics.ffn.variance[5] * layer.mlp.down.weight[:, 5].square().sum()
    torch.testing.assert_close(scores[5], expected.detach())
    statistics.ffn._squares = statistics.ffn._sum.square() / statistics.ffn.tokens
    assert Fluctuation().ffn(layer, statistics).max() < 1e-6


def test_taylor_equals_the_gradient_of_a_factor_on_each_unit():
    model = tiny_model()
    found = Taylor()(locate(model), ROWS)
    ffn, kv = torch.zeros(96), torch.zeros(2)
    for row in ROWS:
        gates = torch.ones(96, requires_grad=True)
        heads = torch.ones(2, requires_grad=True)
        layer = model.model.layers[1]
        hooks = [
            layer.mlp.down_proj.register_forward_pre_hook(lambda _, a, g=gates: (a[0] * g,)),
            layer.self_attn.o_proj.register_forward_pre_hook(
                lambda _, a, g=heads: (a[0] * g.repeat_interleave(32),)
            ),
        ]
        out = model(row[None], use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(out, row[1:], reduction="sum")
        grads = torch.autograd.grad(loss, (gates, heads))
        ffn += grads[0].abs() / len(ROWS)
        kv += grads[1].abs() / len(ROWS)
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(found.ffn[1], ffn, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.kv[1], kv, rtol=1e-3, atol=1e-4)


def refit_error(weight, second, removed, ridge) -> float:
    """Return the least error of the ridge problem without the inputs `removed`."""
    kept = [j for j in range(weight.shape[1]) if j not in removed]
    removed = list(removed)
    h = second + ridge * second.diagonal().mean() * torch.eye(len(second), dtype=second.dtype)
    schur = h[removed][:, removed] - h[removed][:, kept] @ torch.linalg.solve(
        h[kept][:, kept], h[kept][:, removed]
    )
    return torch.trace(weight[:, removed] @ schur @ weight[:, removed].T).item()


@pytest.mark.parametrize("size", [1, 2])
def test_elimination_is_the_greedy_choice_of_an_exhaustive_search(size: int):
    generator = torch.Generator().manual_seed(size)
    mixing = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    samples = torch.randn(200, 8, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(5, 8, generator=generator, dtype=torch.float64)
    second = samples.T @ samples / 200
    found = eliminate(weight, second, size=size, ridge=1e-6)
    energy = torch.trace(weight @ second @ weight.T).item()
    removed: list[int] = []
    for unit, error in zip(found.units[:-1].tolist(), found.error.tolist(), strict=False):
        options = {}
        for candidate in range(8 // size):
            features = list(range(candidate * size, (candidate + 1) * size))
            if features[0] not in removed:
                options[candidate] = refit_error(weight, second, [*removed, *features], 1e-6)
        assert unit == min(options, key=options.__getitem__)
        assert error == pytest.approx(options[unit] / energy, rel=1e-6)
        removed += range(unit * size, (unit + 1) * size)
    assert found.error[-1] == pytest.approx(1, rel=1e-4)


def test_elimination_beats_the_norm_where_units_repeat_each_other():
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 4, generator=generator, dtype=torch.float64)
    samples = torch.cat([base, base[:, :1] + 0.01 * base[:, 1:2]], 1)  # 4 repeats 0
    weight = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    weight[:, [0, 4]] *= 10
    second = samples.T @ samples / 300
    first = eliminate(weight, second, ridge=1e-6).units[0].item()
    assert first in (0, 4)
    best = min(
        itertools.combinations(range(5), 1), key=lambda g: refit_error(weight, second, g, 1e-6)
    )
    assert first == best[0]


def test_rounds_of_several_units_end_at_the_same_total():
    generator = torch.Generator().manual_seed(1)
    samples = torch.randn(400, 30, generator=generator, dtype=torch.float64).cumsum(1)
    weight = torch.randn(7, 30, generator=generator, dtype=torch.float64)
    second = samples.T @ samples / 400
    one, four = eliminate(weight, second), eliminate(weight, second, at_once=4)
    assert sorted(four.units.tolist()) == list(range(30))
    assert (four.error.diff() >= 0).all()
    assert four.error[-1] == pytest.approx(one.error[-1].item())
    assert torch.equal(four.scores()[four.units], four.error)


def test_custom_receives_activations_and_gives_a_nested_order():
    shapes = []

    def largest(activations: torch.Tensor, sparsity: float) -> tuple[torch.Tensor, int]:
        shapes.append(tuple(activations.shape))
        size = activations.abs().mean((0, 1))
        return size.topk(int((1 - sparsity) * len(size))).indices, len(size)

    model = tiny_model()
    scores = CustomScorer(largest, (0.25, 0.5))(locate(model), ROWS)
    tokens = sum(map(len, ROWS))
    assert set(shapes) == {(1, tokens, 96), (1, tokens, 2)}
    assert [int((scores.ffn[0] == times).sum()) for times in (0, 1, 2)] == [24, 24, 48]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (([0], 5), "saw 96 units but counted 5"),
        (([96], 96), "distinct indices below 96"),
        (([1, 1], 96), "distinct indices below 96"),
    ],
)
def test_invalid_results_of_a_custom_scorer_are_refused(answer, message: str):
    with pytest.raises(ImportanceError, match=message):
        CustomScorer(lambda *_: answer)(locate(tiny_model()), ROWS)


def test_block_scores_find_layers_and_blocks_without_effect():
    model = tiny_model(num_hidden_layers=4)
    located = locate(model)
    with torch.no_grad():
        located.layers[2].attention.o.weight.zero_()
        located.layers[2].mlp.down.weight.zero_()
        located.layers[0].mlp.down.weight.zero_()
        located.layers[3].attention.q.weight.zero_()  # uniform attention
    assert layer_influence(located, ROWS)[0] == 2
    first = block_influence(located, ROWS)
    assert set(first[:3]) == {(2, "attention"), (2, "mlp"), (0, "mlp")}
    assert len(set(first)) == 8
    entropy = attention_entropy(located, ROWS)
    assert entropy[0] == (3, "attention")
    assert len(entropy) == 4
    assert last_layers(located) == (3, 2, 1, 0)
