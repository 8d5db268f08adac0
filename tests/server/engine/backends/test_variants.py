"""Variants are views: nothing is copied, and nothing that they do reaches the base."""

import random

import pytest
import torch
from torch import nn

from pruners.architecture import locate
from server.engine.backends.base import Segment
from tests.support.driving import run, runner_of, submit, variants_of, weights_of
from tests.support.parameters import random_order
from tests.support.tiny import tiny_model


def base_logits(runner, prompt):
    cache = runner.scheduler.cache.open()
    assert cache.reserve(len(prompt))
    base = variants_of(runner.decoder.weights)["base"]
    logits = runner.decoder.logits(runner.decoder.forward([Segment(prompt, cache, base)]))
    cache.close()
    return logits


@pytest.mark.slow
def test_base_logits_are_bit_identical_after_a_thousand_switches():
    runner = runner_of(weights_of(tiny_model()))
    variants = list(variants_of(runner.decoder.weights).values())
    prompt = list(range(20, 60))
    before = base_logits(runner, prompt)
    chance = random.Random(0)
    switches = 0
    while switches < 1000:
        for _ in range(chance.randint(1, 8)):
            submit(runner, [chance.randrange(384)], chance.choice(variants), 1)
            switches += 1
        run(runner)
    assert torch.equal(before, base_logits(runner, prompt))
    assert runner.scheduler.cache.arena.used == 0


def test_every_slice_shares_the_bases_storage():
    weights = weights_of(tiny_model())
    runner = runner_of(weights)
    for variant in variants_of(weights).values():
        submit(runner, [4, 5, 6], variant)
    run(runner)
    for name in ("qkv", "o", "gate", "up", "down"):
        matrices = [getattr(layer, name) for layer in weights.layers]
        pieces = [(whole, piece) for whole in matrices for piece in whole._slices.values()]
        assert pieces, "the variants above use slices of every kind of matrix"
        for whole, piece in pieces:
            same = piece.weight.untyped_storage().data_ptr()
            assert same == whole.weight.untyped_storage().data_ptr()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_width_equals_slicing_the_transformers_model(family):
    """An independent oracle: cut the matrices of a plain model to the kept neurons."""
    model = tiny_model(family)
    order = random_order(3, 96, seed=7)
    for index, layer in enumerate(locate(model).layers):
        kept = order[index][:64]  # half of 96, in blocks of 32
        for name in ("gate_proj", "up_proj"):
            old = getattr(layer.module.mlp, name)
            new = nn.Linear(64, 64, bias=False)
            new.weight.data = old.weight.data[kept]
            setattr(layer.module.mlp, name, new)
        new = nn.Linear(64, 64, bias=False)
        new.weight.data = layer.module.mlp.down_proj.weight.data[:, kept]
        layer.module.mlp.down_proj = new
    prompt = list(range(30, 70))
    expected = model(torch.tensor([prompt])).logits[0]
    runner = runner_of(weights_of(tiny_model(family), seed=7))
    cache = runner.scheduler.cache.open()
    assert cache.reserve(len(prompt))
    half = variants_of(runner.decoder.weights)["ffn-50"]
    found = runner.decoder.logits(runner.decoder.forward([Segment(prompt, cache, half)]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_skipped_layer_equals_a_model_without_it(family):
    model = tiny_model(family)
    # As transformers sees it: a layer that hands on what it was given.
    model.model.layers[1].forward = lambda hidden_states, *_, **__: hidden_states
    prompt = list(range(30, 70))
    expected = model(torch.tensor([prompt]), use_cache=False).logits[0]
    runner = runner_of(weights_of(tiny_model(family)))
    cache = runner.scheduler.cache.open()
    assert cache.reserve(len(prompt))
    shallow = variants_of(runner.decoder.weights)["depth-2"]
    found = runner.decoder.logits(runner.decoder.forward([Segment(prompt, cache, shallow)]))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-4)
