from functools import partial

import pytest
import torch

from pruners.allocation.depth import block_spec, order_blocks_to_skip, order_layers_to_skip
from pruners.architecture import locate
from pruners.correction import constant_correction
from pruners.evaluation.evaluate import evaluate, variant_forward
from pruners.realization.mask import apply_mask
from pruners.realization.order import identity_order
from pruners.variant import Block, base_spec
from tests.support.models import logits, random_rows, tiny_model


def silence(located, index: int) -> None:
    with torch.no_grad():
        located.layers[index].attention.o.weight.zero_()
        located.layers[index].mlp.down.weight.zero_()


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3"])
@pytest.mark.parametrize("useless", [0, 1, 2])
def test_a_useless_layer_goes_first(family: str, useless: int):
    located = locate(tiny_model(family))
    silence(located, useless)
    found = order_layers_to_skip(located, random_rows(3, (16, 9)), 1)
    assert found.layers == (useless,)
    assert found.kl[0] == pytest.approx(0, abs=1e-6)


def test_the_best_candidates_survive_all_batches():
    located = locate(tiny_model(num_hidden_layers=9))
    silence(located, 2)
    silence(located, 7)
    found = order_layers_to_skip(located, random_rows(20, (60,)), 2)  # three batches
    assert set(found.layers) == {2, 7}
    assert found.kl == pytest.approx((0, 0), abs=1e-6)


def brute_force_kl(model, rows, without: set[int]) -> float:
    def skipped(hidden: torch.Tensor, **_: object) -> torch.Tensor:
        return hidden

    base = [logits(model, [row])[0, :-1].log_softmax(-1) for row in rows]
    for index in without:
        model.model.layers[index].forward = skipped
    pruned = [logits(model, [row])[0, :-1].log_softmax(-1) for row in rows]
    for index in without:
        del model.model.layers[index].forward
    return torch.nn.functional.kl_div(
        torch.cat(pruned), torch.cat(base), log_target=True, reduction="batchmean"
    ).item()


def test_greedy_choice_equals_brute_force():
    model = tiny_model(num_hidden_layers=5)
    rows = random_rows(4, (16, 9))
    found = order_layers_to_skip(locate(model), rows, 3)
    gone: list[int] = []
    for chosen, kl in zip(found.layers, found.kl, strict=True):
        scores = {
            layer: brute_force_kl(model, rows, {*gone, layer})
            for layer in range(5)
            if layer not in gone
        }
        assert chosen == min(scores, key=scores.__getitem__)
        assert kl == pytest.approx(scores[chosen], rel=1e-3)
        gone.append(chosen)


@pytest.mark.parametrize("count", [0, 3])
def test_refuses_to_skip_none_or_all(count: int):
    with pytest.raises(ValueError, match="of 3 layers"):
        order_layers_to_skip(locate(tiny_model()), random_rows(1, (8,)), count)


@pytest.mark.parametrize("family", ["llama-gqa", "gemma3"])
@pytest.mark.parametrize("useless", [Block(1, "attention"), Block(2, "mlp")])
def test_a_useless_sub_block_goes_first(family: str, useless: Block):
    located = locate(tiny_model(family))
    layer = located.layers[useless.layer]
    with torch.no_grad():
        (layer.attention.o if useless.part == "attention" else layer.mlp.down).weight.zero_()
    found = order_blocks_to_skip(located, random_rows(3, (16, 9)), 1)
    assert found.blocks == (useless,)
    assert found.kl[0] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("biased", [False, True])
def test_greedy_sub_blocks_equal_an_exhaustive_choice_by_mask(biased: bool):
    """The least rise of KL for a parameter, the constants of what is gone in place."""
    located = locate(tiny_model())
    shape, rows = located.shape, random_rows(4, (16, 9))
    blocks = [Block(i, part) for i in range(3) for part in ("attention", "mlp")]
    draws = torch.randn(6, shape.hidden, generator=torch.Generator().manual_seed(0))
    biases = dict(zip(blocks, draws, strict=True)) if biased else {}
    own = {block: constant_correction(bias) for block, bias in biases.items()}
    full = base_spec(shape).body_parameters(shape)
    found = order_blocks_to_skip(located, rows, full - 1, biases)
    gone: list[Block] = []
    before = 0.0
    for chosen, kl in zip(found.blocks, found.kl, strict=True):
        price = {}
        for block in set(blocks) - set(gone):
            spec = block_spec(shape, [*gone, block])
            constants = {b: c for b, c in own.items() if b in (*gone, block)}
            reader = variant_forward(
                located, partial(apply_mask, located, spec, identity_order(shape), constants)
            )
            quality = evaluate(located, {"x": reader}, rows).quality["x"]
            size = full - block_spec(shape, [block]).body_parameters(shape)
            price[block] = (quality.kl - before) / size
            if block == chosen:
                assert kl == pytest.approx(quality.kl, rel=1e-3)
        assert chosen == min(price, key=price.__getitem__)
        before = kl
        gone.append(chosen)
    assert len(gone) == 6


def test_block_spec_names_what_is_left():
    spec = block_spec(locate(tiny_model()).shape, [Block(0, "mlp"), Block(2, "attention")])
    assert spec.name == "blocks-4"
    assert spec.kv_groups == (2, 2, 0)
    assert spec.ffn == (0, 96, 96)


@pytest.mark.parametrize("parameters", [0, 92_160])
def test_refuses_to_skip_no_or_every_sub_block(parameters: int):
    with pytest.raises(ValueError, match="out of 92160"):
        order_blocks_to_skip(locate(tiny_model()), random_rows(1, (8,)), parameters)
