"""Corrections in a step: what `transformers` computes under hooks, and nobody else's rows."""

import pytest
import torch

from pruners.architecture import locate
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from server.engine.backends.base import Segment
from server.engine.backends.pytorch.corrections import convert_corrections
from tests.support.corrections import corrections_by_name, specs_of
from tests.support.driving import run, runner_of, submit, weights_of
from tests.support.parameters import random_order
from tests.support.tiny import tiny_model

SEED = 7
PROMPT = list(range(30, 70))


def setting(family: str):
    model = tiny_model(family)
    weights = weights_of(tiny_model(family), seed=SEED)
    shape = weights.shape
    order = Order(
        random_order(shape.layers, shape.ffn, SEED),
        random_order(shape.layers, shape.kv_groups, SEED),
    )
    specs = specs_of(shape)
    corrections = corrections_by_name(specs, shape)
    runner = runner_of(weights, corrections=convert_corrections(weights, corrections))
    return locate(model), order, specs, corrections, runner


def logits_of(runner, spec):
    cache = runner.scheduler.cache.open()
    assert cache.reserve(len(PROMPT))
    found = runner.decoder.logits(runner.decoder.forward([Segment(PROMPT, cache, spec)]))
    cache.close()
    return found


@torch.no_grad()
@pytest.mark.parametrize(
    "family", ["llama", "llama-bias", "qwen3", "gemma3", "phi3", "granite", "olmo2"]
)
def test_a_corrected_variant_equals_the_corrected_mask(family: str):
    decoder, order, specs, corrections, runner = setting(family)
    for name, spec in specs.items():
        with apply_mask(decoder, spec, order, corrections.get(name)):
            expected = decoder.model(torch.tensor([PROMPT]), use_cache=False).logits[0]
        torch.testing.assert_close(logits_of(runner, spec), expected, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("family", ["llama-bias", "gemma3"])
def test_rows_of_all_variants_in_one_step_write_what_they_write_alone(family: str):
    *_, specs, _, runner = setting(family)
    names = [*specs, *reversed(specs)]

    def tokens(name: str, index: int) -> list[int]:
        _, recorder = submit(runner, PROMPT[index : index + 9], specs[name], 12)
        run(runner)
        return recorder.tokens

    alone = [tokens(name, index) for index, name in enumerate(names)]
    recorders = [
        submit(runner, PROMPT[index : index + 9], specs[name], 12)[1]
        for index, name in enumerate(names)
    ]
    run(runner)
    assert [recorder.tokens for recorder in recorders] == alone


def test_the_base_is_bit_identical_with_corrections_loaded():
    *_, specs, _, runner = setting("llama")
    bare = runner_of(weights_of(tiny_model("llama"), seed=SEED))
    for name in specs:
        submit(runner, PROMPT, specs[name], 3)
    run(runner)
    assert torch.equal(logits_of(runner, specs["base"]), logits_of(bare, specs["base"]))
