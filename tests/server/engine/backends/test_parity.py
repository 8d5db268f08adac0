"""The engine against `transformers`, for every family, alone and in mixed batches."""

import pytest
import torch

from server.engine.backends.base import Segment
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from tests.support.driving import reference, run, runner_of, submit, variants_of, weights_of
from tests.support.tiny import BATCHED_FAMILIES, FAMILIES, VOCAB, tiny_model

PROMPTS = [[5, 9, 33, 7], list(range(10, 60)), [3], [(7 * i) % VOCAB for i in range(90)]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PyTorchDecoder, GraphDecoder])
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers_in_a_batch_with_variants(family, kind):
    expected = [reference(tiny_model(family), prompt, 24) for prompt in PROMPTS]
    runner = runner_of(weights_of(tiny_model(family)), kind=kind)
    variants = variants_of(runner.decoder.weights)
    recorders = []
    for prompt in PROMPTS:
        recorders.append(submit(runner, prompt, variants["base"], 24)[1])
        for name in ("ffn-50", "depth-2", "mixed"):
            submit(runner, prompt, variants[name], 24)
    run(runner)
    assert [r.tokens for r in recorders] == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_logits_equal_transformers(family):
    model = tiny_model(family)
    prompt = PROMPTS[3]
    expected = model(torch.tensor([prompt])).logits[0]
    runner = runner_of(weights_of(model), step_tokens=32)
    cache = runner.scheduler.cache.open()
    assert cache.reserve(len(prompt))
    base = variants_of(runner.decoder.weights)["base"]
    rows = []
    for at in range(0, len(prompt), 32):  # in chunks, as the scheduler does
        segment = Segment(prompt[at : at + 32], cache, base)
        rows.append(runner.decoder.logits(runner.decoder.forward([segment])))
    torch.testing.assert_close(torch.cat(rows), expected, rtol=1e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PyTorchDecoder, GraphDecoder])
@pytest.mark.parametrize("family", BATCHED_FAMILIES)
@pytest.mark.parametrize("name", ["ffn-75", "ffn-50", "depth-2", "mixed"])
def test_a_variant_in_a_mixed_batch_writes_what_it_writes_alone(family, name, kind):
    alone = runner_of(weights_of(tiny_model(family)))
    variants = variants_of(alone.decoder.weights)
    expected = [submit(alone, prompt, variants[name])[1] for prompt in PROMPTS]
    run(alone)
    mixed = runner_of(weights_of(tiny_model(family)), kind=kind)
    found = []
    for index, prompt in enumerate(PROMPTS):
        found.append(submit(mixed, prompt, variants[name])[1])
        others = [v for v in variants if v != name]
        submit(mixed, prompt, variants[others[index % len(others)]])
    run(mixed)
    assert [r.tokens for r in found] == [r.tokens for r in expected]


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_bf16_follows_transformers_bf16(family):
    model = tiny_model(family).to(torch.bfloat16)
    prompt = PROMPTS[1]
    expected = model(torch.tensor([prompt])).logits[0].float()
    runner = runner_of(weights_of(model, seed=None), step_tokens=64)
    cache = runner.scheduler.cache.open()
    assert cache.reserve(len(prompt))
    base = variants_of(runner.decoder.weights)["base"]
    found = runner.decoder.logits(runner.decoder.forward([Segment(prompt, cache, base)]))
    scale = expected.abs().max()
    assert (found - expected).abs().max() < 0.06 * scale
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.9
