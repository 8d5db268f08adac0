"""Decode steps of fixed shape: what the ragged pass computes, on a GPU without asking the host."""

import pytest
import torch

from pruners.kv import make_eviction
from server.engine.backends.base import Segment
from server.engine.backends.pytorch import graph_decoder
from server.engine.backends.pytorch.batched_step import BatchedStep
from server.engine.backends.pytorch.corrections import convert_corrections
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from tests.support.corrections import corrections_of, specs_of
from tests.support.driving import runner_of, variants_of, weights_of
from tests.support.tiny import BATCHED_FAMILIES, tiny_model

PROMPT = list(range(30, 63))


def corrected(family: str, kind: type[PyTorchDecoder], device: str = "cpu"):
    """A decoder with every kind of correction, and the variants."""
    weights = weights_of(tiny_model(family), device=device)
    specs = specs_of(weights.shape)
    corrections = {
        name: corrections_of(specs[name], weights.shape, how, seed)
        for seed, (name, how) in enumerate(
            [("narrow", "rank"), ("own", "materialised"), ("trained", "trained")]
        )
    }
    runner = runner_of(weights, corrections=convert_corrections(weights, corrections), kind=kind)
    return runner.decoder, specs


def opened(decoder, spec, prompt):
    cache = decoder.cache.open()
    assert cache.reserve(len(prompt) + 8)
    decoder.forward([Segment(prompt, cache, spec)])
    return cache


@torch.no_grad()
@pytest.mark.parametrize("family", BATCHED_FAMILIES)
def test_prompts_and_decoded_tokens_of_all_variants_beside_each_other(family):
    """Against the ragged pass, with numbers that are none wherever nothing was cached."""
    found = []
    for kind in (PyTorchDecoder, GraphDecoder):
        decoder, specs = corrected(family, kind)
        for tensor in decoder.cache.tensors():
            tensor.fill_(torch.nan)
        caches = [opened(decoder, spec, PROMPT[:at]) for at, spec in enumerate(specs.values(), 3)]
        hidden = []
        for step in range(3):
            segments = [
                Segment([step + at], cache, spec)
                for at, (cache, spec) in enumerate(zip(caches, specs.values(), strict=True))
            ]
            segments.insert(2, Segment(PROMPT, opened(decoder, specs["base"], [5]), specs["base"]))
            hidden.append(decoder.forward(segments))
        found.append(torch.cat(hidden))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def shapes_of(decoder):
    return [(spec.name, rows, length) for spec, rows, length in decoder._recorded]


@torch.no_grad()
def test_few_shapes_are_recorded_and_the_oldest_are_forgotten(monkeypatch):
    monkeypatch.setattr(graph_decoder, "_MAX_GRAPHS", 3)
    decoder = runner_of(weights_of(tiny_model("llama")), kind=GraphDecoder).decoder
    specs = variants_of(decoder.weights)
    caches = [opened(decoder, specs["base"], PROMPT) for _ in range(5)]
    assert shapes_of(decoder) == []
    for count in (3, 4, 5, 3):
        decoder.forward([Segment([7], cache, specs["base"]) for cache in caches[:count]])
    assert shapes_of(decoder) == [("base", 8, 128), ("base", 4, 128)]
    for name in ("ffn-50", "ffn-75"):
        decoder.forward([Segment([7], caches[0], specs[name])])
    assert shapes_of(decoder) == [("base", 4, 128), ("ffn-50", 1, 128), ("ffn-75", 1, 128)]
    long = opened(decoder, specs["base"], list(range(2, 130)))
    decoder.forward([Segment([7], long, specs["base"])])
    assert shapes_of(decoder)[-1] == ("base", 1, 256)


@torch.no_grad()
@pytest.mark.parametrize(("family", "scorer", "recorded"), [
    ("llama", "streaming", True), ("llama", "snap", False), ("mistral", "streaming", False),
])  # fmt: skip
def test_sequences_that_need_more_than_a_place_go_the_ragged_way(family, scorer, recorded):
    decoder = runner_of(weights_of(tiny_model(family)), kind=GraphDecoder).decoder
    base = variants_of(decoder.weights)["base"]
    cache = decoder.cache.open(make_eviction(64, scorer))
    assert cache.reserve(64)
    decoder.forward([Segment(PROMPT, cache, base)])
    cache.retain(torch.arange(3, 33).expand(decoder.weights.shape.layers, -1), 64)
    decoder.forward([Segment([7], cache, base)])
    assert bool(shapes_of(decoder)) == recorded


@torch.no_grad()
@pytest.mark.parametrize("family", BATCHED_FAMILIES)
def test_a_step_stays_on_its_device(family):
    """On tensors without contents: a host's tensor in between is an error, and so is a look."""
    decoder, specs = corrected(family, PyTorchDecoder, "meta")
    for spec in specs.values():
        step = BatchedStep(4, 256, spec, decoder.weights)
        step.begin()
        hidden = decoder.run(step)
        assert hidden.device.type == "meta"
        assert decoder.logits(hidden).shape == (4, decoder.weights.shape.vocab)
    with pytest.raises(RuntimeError):
        bool(hidden.sum() > 0)
    with pytest.raises(RuntimeError):
        hidden + torch.ones(hidden.shape)


@torch.no_grad()
@pytest.mark.cuda
@pytest.mark.parametrize("family", BATCHED_FAMILIES)
def test_replayed_steps_equal_the_ragged_pass_on_a_gpu(family):
    found = []
    for kind in (PyTorchDecoder, GraphDecoder):
        decoder, specs = corrected(family, kind, "cuda")
        caches = [opened(decoder, spec, PROMPT) for spec in specs.values()]
        found.append(torch.cat([
            decoder.forward([
                Segment([step + 1], cache, spec)
                for cache, spec in zip(caches, specs.values(), strict=True)
            ])
            for step in range(4)
        ]))  # fmt: skip
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3)
