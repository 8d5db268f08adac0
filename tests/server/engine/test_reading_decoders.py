"""Readers in the engine over the decoders that are served, with maps of a tiny model."""

import pytest
import torch

from server.engine.backends.native.library import is_available
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.cache.kv_cache import KVCache
from server.engine.reading_depth import ReadingDepths
from server.engine.runner import Runner
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.speculation.drafting import Drafter
from tests.support.driving import run, submit, variants_of, weights_of
from tests.support.native import reference_and_native
from tests.support.reading import (
    LAST,
    random_tokens,
    reader_of,
    served_order,
    tiny_maps,
    transformers_logits,
)
from tests.support.tiny import tiny_model

PROMPT = random_tokens(90)
READERS = {depth: reader_of(depth)[0] for depth in (1, 2)}
NATIVE = pytest.param(
    True, marks=pytest.mark.skipif(not is_available(), reason="the native kernels are not built")
)
both = pytest.mark.parametrize("native", [False, NATIVE])


def runner_of(native: bool, step_tokens: int = 256, speculate: bool = False) -> Runner:
    if native:
        decoder = reference_and_native("llama", 8, torch.bfloat16)[1]
    else:
        weights = weights_of(tiny_model())
        cache = KVCache(weights.shape, 2048, weights.dtype, weights.device, spare=1)
        maps = convert_maps(weights, tiny_maps(weights.shape), served_order(weights.shape))
        decoder = PyTorchDecoder(weights, cache, None, maps)
    reading = ReadingDepths(3, READERS.values(), reader_of(1)[1])
    limits = SchedulerLimits(8, step_tokens, speculate)
    return Runner(decoder, Scheduler(decoder.cache, limits, reading))


def answer(runner: Runner, depth: int = 0, prompt: list[int] = PROMPT, count: int = 12):
    base = variants_of(runner.decoder.weights)["base"]
    sequence, recorder = submit(runner, prompt, base, count, reader=READERS.get(depth))
    run(runner)
    return sequence, recorder.tokens


@pytest.mark.parametrize("step_tokens", [16, 256])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_answer_is_that_of_transformers_reading_so(depth, step_tokens):
    _, written = answer(runner_of(False, step_tokens), depth)
    maps = tiny_maps(weights_of(tiny_model()).shape)[depth]
    tokens = [*PROMPT, *written]
    logits = transformers_logits(tiny_model(), maps, READERS[depth], tokens, len(PROMPT))
    assert logits[LAST - 1 : -1].argmax(-1).tolist() == written
    assert written != answer(runner_of(False))[1], "maps make a difference here"


@pytest.mark.slow
@both
@pytest.mark.parametrize("depth", [1, 2])
def test_chunks_preemptions_prefixes_and_guesses_change_no_answer(native, depth):
    expected = answer(runner_of(native), depth)[1]
    chunked = runner_of(native, step_tokens=16)
    assert answer(chunked, depth)[1] == expected
    again, found = answer(chunked, depth)
    assert (again.reused, found) == (len(PROMPT) - 1, expected)
    guessing = runner_of(native, speculate=True)
    variant = variants_of(guessing.decoder.weights)["ffn-75"]
    guessing.drafter = Drafter(variant, 0.9, 0.0)
    assert answer(guessing, depth)[1] == expected
    for moment in (2, 5, 9):
        runner = runner_of(native, step_tokens=16)
        base = variants_of(runner.decoder.weights)["base"]
        sequence, recorder = submit(runner, PROMPT, base, 12, reader=READERS[depth])
        for _ in range(moment):
            runner.step()
        runner.scheduler._preempt(sequence)
        while runner.scheduler.cache.prefixes.drop_oldest():
            pass
        run(runner)
        assert recorder.tokens == expected, moment


@pytest.mark.slow
@both
def test_the_base_is_bit_for_bit_what_it_is_without_readers(native):
    """Keys, values and answers of full requests after shallow ones; in their steps, too.

    What PyTorch computes of a row depends on the rows beside it, with and without readers.
    """
    runner, plain = runner_of(native, 64), runner_of(native, 64)
    longer = [*PROMPT, *random_tokens(20, seed=5)]
    for depth in READERS:
        answer(runner, depth)
        answer(runner, depth, longer)
    found = []
    for one in (runner, plain):
        base = variants_of(one.decoder.weights)["base"]
        if one is runner and native:
            submit(one, longer, base, 12, reader=READERS[1])
        sequence, recorder = submit(one, PROMPT, base, 12)
        run(one)
        again, others = answer(one, 0, longer)
        kept = {
            (entry.tokens, len(entry.tokens)): [t.clone() for t in entry.cache.read()]
            for entry in one.scheduler.cache.prefixes._entries
            if min(entry.depths) == 255
        }
        found.append((recorder.tokens, others, sequence.reused, again.reused, kept))
    assert found[0][:4] == found[1][:4]
    assert found[0][3] == len(PROMPT), "it starts from what the base read"
    assert len(found[0][4]) == 2
    assert found[0][4].keys() == found[1][4].keys()
    for key, tensors in found[0][4].items():
        for one, other in zip(tensors, found[1][4][key], strict=True):
            assert one.equal(other)
