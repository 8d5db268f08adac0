import copy

import pytest
import torch
from torch import nn

from pruners.architecture import locate
from pruners.correction import (
    LowRankCorrection,
    RecoveryError,
    RefitCorrection,
    from_tensors,
    to_tensors,
)
from pruners.evaluation.evaluate import evaluate, reading
from pruners.realization.mask import apply_mask
from pruners.recovery import Recipe, recover
from pruners.recovery.solve import Refit, Seen, bias, low_rank, refits, relative_errors
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
KEPT = torch.tensor([0, 2, 3, 6, 9])


@pytest.fixture
def problem() -> tuple[torch.Tensor, Seen]:
    """400 correlated samples of 10 features with a mean, a weight `[7, 10]` and their moments."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(10, 10, generator=generator, dtype=torch.float64)
    samples = torch.randn(400, 10, generator=generator, dtype=torch.float64) @ mixing + 2
    weight = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    return samples, Seen(weight, samples.mean(0), samples.T @ samples / 400)


def refit(seen: Seen, ridge: float) -> Refit:
    """With one ridge among others, which must not change it."""
    return list(refits(seen, KEPT, (10.0, ridge, 3.0)))[1]


def test_refit_equals_lstsq(problem):
    samples, seen = problem
    change = refit(seen, 0.0).change
    replacement = seen.weight[:, KEPT] + change
    with_constant = torch.cat([samples[:, KEPT], torch.ones(400, 1, dtype=torch.float64)], 1)
    expected = torch.linalg.lstsq(with_constant, samples @ seen.weight.T).solution.T
    torch.testing.assert_close(replacement, expected[:, :-1])
    torch.testing.assert_close(bias(seen, KEPT, replacement), expected[:, -1])


def test_ridge_equals_lstsq_on_augmented_samples(problem):
    """A ridge is least squares with one more sample a feature, at which no change is wanted."""
    samples, seen = problem
    lost = torch.tensor([j for j in range(10) if j not in KEPT.tolist()])
    centred = samples - samples.mean(0)
    strength = 0.1 * centred[:, KEPT].var(0, correction=0).mean()
    rows = torch.cat([centred[:, KEPT], (400 * strength).sqrt() * torch.eye(5).double()])
    wanted = torch.cat([centred[:, lost] @ seen.weight[:, lost].T, torch.zeros(5, 7).double()])
    change = refit(seen, 0.1).change
    torch.testing.assert_close(change, torch.linalg.lstsq(rows, wanted).solution.T)


def test_a_strong_ridge_leaves_the_kept_columns(problem):
    _, seen = problem
    assert refit(seen, 1e9).change.abs().max() < 1e-6


def test_low_rank_is_the_whitened_svd_and_beats_any_other(problem):
    _, seen = problem
    found = refit(seen, 1e-3)
    change, within = found.change, found.within
    root = torch.linalg.cholesky(within)

    def error(approximation: torch.Tensor) -> float:
        return ((change - approximation) @ root).norm().item()

    singular = torch.linalg.svdvals(change @ root)
    generator = torch.Generator().manual_seed(1)
    for rank in range(6):
        up, down = low_rank(change, within, rank)
        assert up.shape == (7, rank)
        assert down.shape == (rank, 5)
        assert error(up @ down) == pytest.approx(singular[rank:].norm().item(), abs=1e-9)
        for _ in range(50):
            other = torch.randn(7, rank, generator=generator, dtype=torch.float64)
            best_down = torch.linalg.pinv(other) @ change  # given this `up`, the best there is
            assert error(up @ down) <= error(other @ best_down) + 1e-9
            noisy = up + 0.1 * torch.randn(up.shape, generator=generator, dtype=torch.float64)
            assert error(up @ down) <= error(noisy @ down) + 1e-9
    torch.testing.assert_close(torch.matmul(*low_rank(change, within, 5)), change)


def test_relative_error_equals_the_samples(problem):
    samples, seen = problem
    generator = torch.Generator().manual_seed(2)
    replacement = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    added = torch.randn(7, generator=generator, dtype=torch.float64)
    truth = samples @ seen.weight.T
    rest = truth - samples[:, KEPT] @ replacement.T - added
    expected = rest.square().sum() / truth.square().sum()
    found = relative_errors(seen, KEPT, replacement, [0 * added, added])[1]
    assert found == pytest.approx(expected.item())
    silent = Seen(0 * seen.weight, seen.mean, seen.second)
    assert relative_errors(silent, KEPT, 0 * replacement, [added]) == [0]


NARROW = VariantSpec("narrow", (1, 2, 0), (64, 96, 32))
BLOCKS = [Block(0, "attention"), Block(0, "mlp"), Block(2, "attention"), Block(2, "mlp")]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", [Recipe(0), Recipe(4), Recipe(materialised=True)])
def test_a_corrected_mask_is_the_model_with_new_weights(family: str, recipe: Recipe):
    model = tiny_model(family)
    located = locate(model)
    shape, order = located.shape, random_order(located.shape)
    spec = VariantSpec("narrow", (1, shape.kv_groups, 0), NARROW.ffn)
    (found,) = recover(located, [spec], order, ROWS, recipe)
    assert list(found.corrections) == BLOCKS
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
    (found,) = recover(located, [spec], random_order(located.shape), rows, Recipe())
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
    spec = VariantSpec("narrow", (1, shape.kv_groups, 1), (64, 96, 32))
    rows = random_rows(2, (24,), seed=5)
    outputs = []
    for recipe in (Recipe(rank=64), Recipe(materialised=True)):
        (found,) = recover(located, [spec], order, random_rows(40, (60,)), recipe)
        with apply_mask(located, spec, order, found.corrections):
            outputs.append(logits(model, rows))
        assert all(bought.refit < bought.none for bought in found.bought)
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
    recipe = Recipe(materialised=True)
    (found,) = recover(located, [spec], order, ROWS, recipe)
    for bought in found.bought:
        assert bought.none > 0.05
        assert bought.refit < 1e-3 * bought.none
    rows = random_rows(4, (30,), seed=9)

    readers = {
        "plain": reading(located, lambda: apply_mask(located, spec, order)),
        "better": reading(located, lambda: apply_mask(located, spec, order, found.corrections)),
    }
    quality = evaluate(located, readers, rows).quality
    assert quality["better"].kl < 0.05 * quality["plain"].kl


def test_each_step_buys_something_and_more_rank_buys_more():
    located = locate(tiny_model())
    order = random_order(located.shape)
    rows = random_rows(60, (60,))
    steps = []
    for rank in (0, 8, 64):
        (found,) = recover(located, [NARROW], order, rows, Recipe(rank))
        steps.append([bought.low_rank for bought in found.bought])
        for bought in found.bought:
            assert bought.refit < bought.bias < bought.none
            assert (
                bought.kept
                == {"attention": 32, "mlp": NARROW.ffn[bought.block.layer]}[bought.block.part]
            )
    for none, some, full in zip(*steps, strict=True):
        assert full < some < none
    assert steps[0] == [bought.bias for bought in found.bought]
    assert steps[2] == pytest.approx([bought.refit for bought in found.bought])


def test_many_variants_share_a_pass_and_repeat_themselves():
    located = locate(tiny_model())
    order = random_order(located.shape)
    wider = VariantSpec("wider", (2, 2, 2), (64, 64, 64))
    both = recover(located, [NARROW, wider], order, ROWS, Recipe(4))
    (alone,) = recover(located, [wider], order, ROWS, Recipe(4))
    assert alone.bought == both[1].bought
    for block, correction in alone.corrections.items():
        assert torch.equal(correction.bias, both[1].corrections[block].bias)


def test_tensors_of_corrections_come_back():
    corrections = {
        Block(3, "mlp"): LowRankCorrection(torch.ones(4), torch.ones(4, 2), torch.ones(2, 7)),
        Block(0, "attention"): RefitCorrection(torch.ones(4), torch.ones(4, 5)),
    }
    tensors = to_tensors(corrections)
    assert set(tensors) == {
        "3.mlp.bias",
        "3.mlp.up",
        "3.mlp.down",
        "0.attention.bias",
        "0.attention.weight",
    }
    again = from_tensors(tensors)
    assert again.keys() == corrections.keys()
    assert again[Block(3, "mlp")].input_width == 7
    assert again[Block(0, "attention")].input_width == 5


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"x.mlp.bias": torch.ones(4)}, "'x.mlp.bias' is not the name"),
        ({"1.norm.bias": torch.ones(4)}, "'1.norm.bias' is not the name"),
        ({"1.mlp.bias": torch.ones(4)}, "layer 1 mlp has shapes"),
        ({"1.mlp.bias": torch.ones(4), "1.mlp.weight": torch.ones(3, 7)}, "has shapes"),
        (
            {
                "1.mlp.bias": torch.ones(4),
                "1.mlp.up": torch.ones(4, 2),
                "1.mlp.down": torch.ones(3, 7),
            },
            "has shapes",
        ),
    ],
)
def test_tensors_that_are_no_corrections_are_refused(tensors, message: str):
    with pytest.raises(RecoveryError, match=message):
        from_tensors(tensors)


def test_a_single_row_cannot_be_held_out():
    located = locate(tiny_model())
    with pytest.raises(RecoveryError, match="at least 2"):
        recover(located, [NARROW], random_order(located.shape), ROWS[:1], Recipe())
