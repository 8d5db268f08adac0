"""What fails in a step costs the requests that made it fail; the others' text does not change."""

import math
from types import SimpleNamespace

import pytest
import torch

from server.engine.backends.native import batch as native_batch
from server.engine.backends.native import library as native_library
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.packed_weights import pack_weights
from server.engine.cache.kv_cache import KVCache
from server.engine.offline import answer_all
from server.engine.runner import Runner
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.sequence import FinishReason, GenerationRequest
from server.engine.speculation.drafting import Drafter
from server.shadow.teacher_forcing import TeacherForcing
from tests.support.driving import (
    TOKENIZER,
    Recorder,
    run,
    runner_of,
    submit,
    variants_of,
    weights_of,
)
from tests.support.parameters import converted
from tests.support.tiny import VOCAB, tiny_model

POISON = 77
SAMPLED = SamplingParams(temperature=0.9, seed=5)
NATIVE = pytest.param(
    True, marks=pytest.mark.skipif(not native_library.is_available(), reason="not built")
)
both = pytest.mark.parametrize("native", [False, NATIVE])


def made(native: bool, running: int = 4) -> Runner:
    if not native:
        runner = runner_of(weights_of(tiny_model()), running=running)
    else:
        packed = pack_weights(converted(tiny_model()), 8)
        decoder = NativeDecoder(packed, KVCache(packed.shape, 4096, packed.dtype, packed.device))
        runner = Runner(decoder, Scheduler(decoder.cache, SchedulerLimits(running, 32)))
    runner.failures = []
    runner.on_failure = runner.failures.append
    return runner


def good_ones(runner: Runner, count: int = 6) -> list[Recorder]:
    """More than run at once, greedy and sampled."""
    base = variants_of(runner.decoder.weights)["base"]
    return [
        submit(runner, [i, i + 1, i + 2], base, 12, **({"sampling": SAMPLED} if i % 2 else {}))[1]
        for i in range(3, 3 + count)
    ]


def texts(recorders: list[Recorder]) -> list[tuple[list[int], str, FinishReason | None]]:
    return [(r.tokens, r.text, r.last.finish_reason) for r in recorders]


def undisturbed(native: bool) -> list[tuple[list[int], str, FinishReason | None]]:
    runner = made(native)
    found = good_ones(runner)
    run(runner)
    assert all(last is FinishReason.LENGTH for _, _, last in texts(found))
    return texts(found)


def failing_on_poison(runner: Runner, method: str):
    """Makes `forward` (or what looks at its result) raise if the poison is in the batch."""
    forward, inner = runner.decoder.forward, getattr(runner.decoder, method)
    poisoned = SimpleNamespace(now=False)

    def watched(segments):
        poisoned.now = any(POISON in segment.tokens for segment in segments)
        if poisoned.now and method == "forward":
            for segment in segments:
                segment.cache.advance(len(segment.tokens))  # as a real pass does before it fails
            raise RuntimeError("poison")
        return forward(segments)

    def looked(hidden, *rest):
        if poisoned.now:
            raise RuntimeError("poison")
        return inner(hidden, *rest)

    runner.decoder.forward = watched
    if method != "forward":
        setattr(runner.decoder, method, looked)


@both
@pytest.mark.parametrize("method", ["forward", "sample"])
def test_a_failed_pass_ends_only_those_it_fails_on(native, method):
    expected = undisturbed(native)
    runner = made(native)
    failing_on_poison(runner, method)
    base = variants_of(runner.decoder.weights)["base"]
    _, first = submit(runner, [5, POISON], base, 12)
    rest = good_ones(runner)
    _, last = submit(runner, [POISON, 9], base, 12)
    run(runner)
    assert texts(rest) == expected
    for bad in (first, last):
        assert bad.last.finish_reason is FinishReason.ERROR
        assert bad.last.error == "the engine failed on this request"
        assert not bad.tokens
    assert runner.failures.count("request") == 2
    assert runner.failures.count("step") == 2
    assert runner.scheduler.cache.arena.used == runner.scheduler.cache.prefixes.slots
    assert not runner.scheduler.running
    assert not runner.scheduler.waiting


@both
def test_a_pass_that_fails_once_ends_nobody(native):
    expected = undisturbed(native)
    runner = made(native)
    found = good_ones(runner)
    forward, calls = runner.decoder.forward, iter(range(10_000))

    def sometimes(segments):
        if next(calls) in (0, 3, 8):
            raise MemoryError
        return forward(segments)

    runner.decoder.forward = sometimes
    run(runner)
    assert texts(found) == expected
    assert runner.failures == ["step"] * 3


def test_a_decoder_that_always_fails_is_not_the_requests_fault():
    runner = made(False)
    _, bad = submit(runner, [5, 6], variants_of(runner.decoder.weights)["base"], 4)

    def broken(segments):
        raise RuntimeError("no decoder left")

    runner.decoder.forward = broken
    with pytest.raises(RuntimeError, match="no decoder left"):
        runner.step()
    assert bad.last.finish_reason is FinishReason.ERROR
    assert runner.scheduler.cache.arena.used == 0


def break_sampler(sequence):
    def sampler(logits, prompt, output):
        raise IndexError("sampler")

    sequence.needs_logits, sequence.sampler = lambda position: True, sampler


def break_text(sequence):
    def push(token):
        raise UnicodeError("text")

    sequence.detokenizer.push = push


def break_emit(sequence):
    def emit(delta):
        raise RuntimeError("emit")

    sequence.emit = emit


def break_room(sequence):
    def broken(self):
        raise RuntimeError("room")

    sequence.__class__ = type("Broken", (type(sequence),), {"slots_to_start": property(broken)})


@pytest.mark.slow
@pytest.mark.parametrize("damage", [break_sampler, break_text, break_emit, break_room])
def test_what_is_done_for_one_request_costs_that_one_only(damage):
    expected = undisturbed(False)
    runner = made(False)
    bad, recorder = submit(runner, [5, 9], variants_of(runner.decoder.weights)["base"], 12)
    damage(bad)
    rest = good_ones(runner)
    run(runner)
    assert texts(rest) == expected
    assert bad.ended
    assert runner.failures == ["request"]
    if damage is not break_emit:
        assert recorder.last.finish_reason is FinishReason.ERROR
    assert runner.scheduler.cache.arena.used == runner.scheduler.cache.prefixes.slots


@pytest.mark.slow
@both
@pytest.mark.parametrize("more", [{}, {"sampling": SAMPLED}, {"logprobs": 2}, {"min_tokens": 2}])
def test_what_is_no_number_is_never_sampled(native, more, monkeypatch):
    expected = undisturbed(native)
    runner = made(native)
    if native:  # behind the vocabulary, where kernels must not read
        token = VOCAB + 1000
        monkeypatch.setattr(native_batch, "check_rows", lambda *_: None)
    else:
        token = POISON
        runner.decoder.weights.embed[token] = math.nan
    base = variants_of(runner.decoder.weights)["base"]
    _, bad = submit(runner, [5, token], base, 12, eos_token_ids=frozenset({1}), **more)
    _, scored = submit(runner, [token, 6], base, 0, prompt_logprobs=0)
    rest = good_ones(runner)
    run(runner)
    for one in (bad, scored):
        assert one.last.finish_reason is FinishReason.ERROR
        assert one.last.error == "the model gave no finite number for the next token"
        assert not one.tokens
    assert texts(rest) == expected


@pytest.mark.slow
@both
@pytest.mark.parametrize("token", [-1, VOCAB, 2**31 - 1])
def test_a_token_behind_the_vocabulary_ends_only_its_own_request(native, token):
    expected = undisturbed(native)
    runner = made(native)
    base = variants_of(runner.decoder.weights)["base"]
    _, bad = submit(runner, [5, token], base, 12)
    _, far = submit(runner, [5] * 1200, base, 12)  # positions behind the rotary tables
    rest = good_ones(runner)
    run(runner)
    assert [one.last.finish_reason for one in (bad, far)] == [FinishReason.ERROR] * 2
    assert texts(rest) == expected


@pytest.mark.skipif(not native_library.is_available(), reason="kernels are not built")
@pytest.mark.parametrize("change", ["wider", "longer", "negative"])
def test_a_variant_that_is_no_part_of_the_model_reads_nothing(change):
    runner = made(True)
    base = variants_of(runner.decoder.weights)["base"]
    ffn = {"wider": (999, *base.ffn[1:]), "longer": (*base.ffn, 1), "negative": (-1, *base.ffn[1:])}
    spec = type(base)("odd", base.kv_groups, ffn[change])
    _, bad = submit(runner, [5, 6], spec, 4)
    run(runner)
    assert bad.last.finish_reason is FinishReason.ERROR


def test_a_variant_that_cannot_guess_costs_no_answer():
    runner = made(False)
    variants = variants_of(runner.decoder.weights)
    expected = undisturbed(False)
    forward = runner.decoder.forward

    def fails_when_guessing(segments):
        if segments[0].variant.name == "ffn-75":
            segments[0].cache.advance(1)
            raise RuntimeError("cannot guess")
        return forward(segments)

    runner.decoder.forward = fails_when_guessing
    runner.drafter = Drafter(variants["ffn-75"], 0.9, 0.0)
    runner.drafter.draft_count = lambda verify_cost: 1  # however long steps take on this machine
    found = good_ones(runner)
    run(runner)
    assert texts(found) == expected
    assert runner.failures == ["step"]


def test_a_freed_cache_full_of_no_numbers_changes_nobody_elses_text():
    for native in (False, *([True] if native_library.is_available() else [])):
        expected = undisturbed(native)
        runner = made(native)
        for tensor in (runner.scheduler.cache.keys, runner.scheduler.cache.values):
            tensor.fill_(torch.nan)
        found = good_ones(runner)
        run(runner)
        assert texts(found) == expected


def test_a_job_without_a_server_stops_at_the_first_error():
    runner = made(False)
    failing_on_poison(runner, "forward")
    base = variants_of(runner.decoder.weights)["base"]
    requests = [GenerationRequest(str(n), (5, n), 4, base) for n in (6, POISON, 8)]
    with pytest.raises(RuntimeError, match="failed on this request"):
        answer_all(runner, TOKENIZER, requests)


def test_an_answer_read_again_with_no_number_gives_no_result():
    runner = made(False)
    runner.decoder.weights.embed[POISON] = math.nan
    variants = variants_of(runner.decoder.weights)
    reading = TeacherForcing(
        runner.decoder, [5, 6], [7, POISON, 8], variants["base"], [variants["ffn-50"]]
    )
    while reading.advance():
        pass
    with pytest.raises(ArithmeticError):
        reading.losses()
    reading.close()
