"""Answers in an engine on a GPU are those on the CPU: variants, readers and budgets in one batch.

Without a GPU the same is compared on the CPU, between its decoder and the one that a GPU has.
"""

import pytest

from pruners.kv import make_eviction
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.cache.kv_cache import KVCache
from server.engine.reading_depth import ReadingDepths
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler, SchedulerLimits
from tests.support.driving import run, submit, variants_of, weights_of
from tests.support.reading import random_tokens, reader_of, served_order, tiny_maps
from tests.support.tiny import tiny_model

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
READERS = {depth: reader_of(depth)[0] for depth in (1, 2)}


def runner_on(device: str, kind: type[PyTorchDecoder], family: str) -> Runner:
    weights = weights_of(tiny_model(family), device=device)
    maps = convert_maps(weights, tiny_maps(weights.shape), served_order(weights.shape))
    cache = KVCache(weights.shape, 4096, weights.dtype, weights.device, spare=1)
    reading = ReadingDepths(weights.shape.layers, READERS.values(), reader_of(1)[1])
    limits = SchedulerLimits(16, 64, speculate=True)
    return Runner(kind(weights, cache, None, maps), Scheduler(cache, limits, reading))


def answers(runner: Runner) -> list[list[int]]:
    """What is written for prompts of several lengths by all variants, and read in all ways."""
    written = []
    for seed, spec in enumerate(variants_of(runner.decoder.weights).values()):
        written.append(submit(runner, random_tokens(20 + 9 * seed, seed), spec, 12)[1])
    base = variants_of(runner.decoder.weights)["base"]
    for reader in READERS.values():
        written.append(submit(runner, random_tokens(70, 11), base, 12, reader=reader)[1])
    for scorer in ("streaming", "snap"):
        budget = make_eviction(64, scorer)
        written.append(submit(runner, random_tokens(90, 12), base, 12, kv_budget=budget)[1])
    run(runner)
    return [recorder.tokens for recorder in written]


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_answers_are_the_same_on_every_device(device, family):
    expected = answers(runner_on("cpu", PyTorchDecoder, family))
    assert answers(runner_on(device, GraphDecoder, family)) == expected
    assert all(len(tokens) == 12 for tokens in expected)
