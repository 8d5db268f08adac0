"""A prompt is read as its reader says, whatever else happens to its sequence."""

import random
from dataclasses import replace

import pytest

from pruners.kv import make_eviction
from pruners.reading.reader import PromptReader
from server.engine.admission import InvalidRequestError, check
from server.engine.reading_depth import ReadingDepths
from server.engine.runner import Runner
from server.engine.sequence import FinishReason, GenerationRequest
from server.engine.speculation.drafting import Drafter
from tests.support.driving import reference, run, runner_of, submit, variants_of, weights_of
from tests.support.readers import (
    DEEPER,
    NUMBERS,
    SHALLOW,
    WITH_NUMBERS,
    SubstitutingDecoder,
    as_read,
    substitute,
)
from tests.support.tiny import tiny_model

PROMPT = [(31 * i) % 384 for i in range(75)]  # read in three steps
REPEATING = [7, 8, 9, 10, 11] * 15
WEIGHTS = weights_of(tiny_model())
VARIANTS = variants_of(WEIGHTS)
BASE = VARIANTS["base"]


def fresh(speculate: bool = False, **limits: int) -> Runner:
    runner = runner_of(WEIGHTS, kind=SubstitutingDecoder, **limits)
    runner.scheduler.limits = replace(runner.scheduler.limits, speculate=speculate)
    runner.scheduler.reading = ReadingDepths(WEIGHTS.shape.layers, (), NUMBERS)
    return runner


def forget(runner: Runner) -> None:
    while runner.scheduler.cache.prefixes.drop_oldest():
        pass


def test_segments_say_which_tokens_are_shallow():
    runner = fresh(step_tokens=32)
    _, recorder = submit(runner, PROMPT, BASE, 3, reader=WITH_NUMBERS)
    run(runner)
    prompt = runner.decoder.segments[:3]
    assert [len(segment.tokens) for segment in prompt] == [32, 32, 11]
    found = [one for segment in prompt for one in segment.shallow]
    near = {i - before for i, t in enumerate(PROMPT) if t % 25 == 0 for before in range(4)}
    expected = [4 <= i < 70 and i not in near for i in range(len(PROMPT))]
    assert found == expected
    assert [segment.depth for segment in prompt] == [1, 1, 1]
    assert all(segment.shallow is None for segment in runner.decoder.segments[3:])
    assert len(recorder.tokens) == 3


@pytest.mark.parametrize(
    ("reader", "numbers"), [(SHALLOW, None), (DEEPER, None), (WITH_NUMBERS, NUMBERS), (None, None)]
)
@pytest.mark.parametrize("step_tokens", [8, 256])
def test_the_answer_is_that_of_a_prompt_read_so(reader, numbers, step_tokens):
    runner = fresh(step_tokens=step_tokens)
    _, recorder = submit(runner, PROMPT, BASE, 20, reader=reader)
    run(runner)
    read = PROMPT if reader is None else as_read(PROMPT, reader, numbers)
    assert recorder.tokens == reference(tiny_model(), read, 20)


def test_rows_of_several_readers_and_variants_share_steps():
    runner = fresh(step_tokens=48)
    kinds = [(reader, name) for reader in (SHALLOW, DEEPER, None) for name in ("base", "ffn-50")]
    made = [submit(runner, PROMPT, VARIANTS[n], 15, reader=r)[1] for r, n in kinds]
    run(runner)
    for (reader, name), recorder in zip(kinds, made, strict=True):
        alone = fresh()
        read = PROMPT if reader is None else as_read(PROMPT, reader)
        _, expected = submit(alone, read, VARIANTS[name], 15)
        run(alone)
        assert recorder.tokens == expected.tokens, (reader, name)


@pytest.mark.parametrize("length", [1, 9, 10])
def test_a_short_prompt_has_no_more_than_its_middle_to_read_shallow(length):
    runner = fresh()
    _, recorder = submit(runner, PROMPT[:length], BASE, 4, reader=SHALLOW)
    run(runner)
    shallow = [one for s in runner.decoder.segments if s.shallow for one in s.shallow]
    assert sum(shallow) == max(0, length - 9)
    assert recorder.tokens == reference(tiny_model(), as_read(PROMPT[:length], SHALLOW), 4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "budget", "drafted"])
def test_a_preempted_prompt_is_read_again_as_it_was(kind):
    more = {"kv_budget": make_eviction(48)} if kind == "budget" else {}

    def drive(preempted_after: int | None):
        runner = fresh(step_tokens=16, speculate=kind == "drafted")
        if kind == "drafted":
            runner.drafter = Drafter(VARIANTS["ffn-75"], 0.9, 0.0)
        sequence, recorder = submit(runner, PROMPT, BASE, 16, reader=SHALLOW, **more)
        steps = 0
        while runner.step():
            steps += 1
            if steps == preempted_after and not sequence.ended:
                runner.scheduler._preempt(sequence)
                forget(runner)
        return recorder.tokens, steps

    expected, steps = drive(None)
    for moment in range(1, steps, 2):
        assert drive(moment)[0] == expected, moment


@pytest.mark.slow
def test_what_was_copied_from_a_deeper_prefix_is_read_again_as_deep():
    """The oracle reads 30 tokens in full, 20 at depth 2, the rest at depth 1."""
    runner = fresh(step_tokens=64)
    submit(runner, PROMPT[:35], BASE, 1)
    run(runner)
    submit(runner, PROMPT[:55], BASE, 1, reader=DEEPER)
    run(runner)
    read = [*PROMPT[:35], *(substitute(t, 2) for t in PROMPT[35:50]), *PROMPT[50:55]]
    read += [*(substitute(t, 1) for t in PROMPT[55:70]), *PROMPT[70:]]
    expected = reference(tiny_model(), read, 12)
    for preempted_after in (None, 1, 2, 6):
        sequence, recorder = submit(runner, PROMPT, BASE, 12, reader=SHALLOW)
        steps = 0
        while runner.step():
            steps += 1
            if steps == preempted_after:
                runner.scheduler._preempt(sequence)
                forget(runner)
        assert recorder.tokens == expected, preempted_after
        assert sequence.reused == 55
        forget(runner)
        submit(runner, PROMPT[:35], BASE, 1)
        run(runner)
        submit(runner, PROMPT[:55], BASE, 1, reader=DEEPER)
        run(runner)


def test_after_a_preemption_no_deeper_prefix_is_taken():
    runner = fresh(step_tokens=256, running=1)
    sequence, recorder = submit(runner, PROMPT, BASE, 12, reader=SHALLOW)
    for _ in range(4):
        runner.step()
    runner.scheduler._preempt(sequence)
    forget(runner)
    ahead, other = submit(runner, PROMPT, BASE, 1)
    runner.scheduler.waiting.remove(ahead)
    runner.scheduler.waiting.put_back(ahead)  # it leaves a prefix that was read in full
    run(runner)
    assert len(other.tokens) == 1
    assert recorder.tokens == reference(tiny_model(), as_read(PROMPT, SHALLOW), 12)


@pytest.mark.slow
@pytest.mark.parametrize("by_variant", [False, True])
def test_guesses_change_no_answer(by_variant):
    def write(speculate: bool):
        runner = fresh(speculate)
        if by_variant and speculate:
            runner.drafter = Drafter(VARIANTS["ffn-75"], 0.9, 0.0)
        sequence, recorder = submit(runner, REPEATING, BASE, 40, reader=SHALLOW)
        run(runner)
        return recorder.tokens, sequence.lookup.proposed

    plain, none = write(False)
    guessed, proposed = write(True)
    assert guessed == plain == reference(tiny_model(), as_read(REPEATING, SHALLOW), 40)
    assert none == 0 < proposed


def test_a_budget_keeps_what_it_keeps_of_a_prompt_read_so():
    found = []
    for prompt, reader in ((PROMPT, SHALLOW), (as_read(PROMPT, SHALLOW), None)):
        runner = fresh()
        budget = make_eviction(48, "key-diff")
        _, recorder = submit(runner, prompt, BASE, 20, reader=reader, kv_budget=budget)
        run(runner)
        found.append(recorder.tokens)
    assert found[0] == found[1]


@pytest.mark.parametrize("after", [1, 6])
def test_an_answer_may_be_narrowed_while_it_reads_or_writes(after):
    found = []
    for prompt, reader in ((PROMPT, SHALLOW), (as_read(PROMPT, SHALLOW), None)):
        runner = fresh(step_tokens=32)
        sequence, recorder = submit(runner, prompt, BASE, 20, reader=reader)
        for _ in range(after):
            runner.step()
        sequence.narrow(VARIANTS["mixed"])
        run(runner)
        found.append(recorder.tokens)
    assert found[0] == found[1]


def test_a_failed_step_is_run_again_as_it_was():
    runner, failing = fresh(step_tokens=64), [2, 3]
    forward = runner.decoder.forward
    calls = []

    def sometimes(segments):
        calls.append(len(segments))
        if len(calls) in failing:
            for segment in segments:
                segment.cache.advance(len(segment.tokens))
            raise RuntimeError("once")
        return forward(segments)

    runner.decoder.forward = sometimes
    readers = [SHALLOW, DEEPER, None]
    made = [submit(runner, PROMPT, BASE, 8, reader=reader)[1] for reader in readers]
    run(runner)
    assert len(calls) > 4
    ended = [r for r in made if r.last.finish_reason is FinishReason.LENGTH]
    assert len(ended) >= 2
    for reader, recorder in zip(readers, made, strict=True):
        read = PROMPT if reader is None else as_read(PROMPT, reader)
        assert recorder.tokens == reference(tiny_model(), read, 8)[: len(recorder.tokens)]


def test_what_the_engine_cannot_read_so_ends_that_request_alone():
    runner = fresh()
    attended = replace(SHALLOW, attended=0.25)
    _, refused = submit(runner, PROMPT, BASE, 4, reader=attended)
    runner.scheduler.reading = ReadingDepths(WEIGHTS.shape.layers)
    _, nameless = submit(runner, PROMPT, BASE, 4, reader=WITH_NUMBERS)
    _, fine = submit(runner, PROMPT, BASE, 4, reader=SHALLOW)
    run(runner)
    assert refused.last.finish_reason is FinishReason.ERROR
    assert nameless.last.finish_reason is FinishReason.ERROR
    assert len(fine.tokens) == 4


def test_a_reader_of_all_layers_reads_in_full():
    runner = fresh()
    _, recorder = submit(runner, PROMPT, BASE, 6, reader=PromptReader("all", 3))
    run(runner)
    assert recorder.tokens == reference(tiny_model(), PROMPT, 6)


def test_a_scored_prompt_has_no_reader():
    request = GenerationRequest("scored", (1, 2), 1, BASE, prompt_logprobs=0, reader=SHALLOW)
    with pytest.raises(InvalidRequestError, match="in full"):
        check(request, 384, 512)
    check(replace(request, reader=None), 384, 512)


@pytest.mark.slow
def test_random_requests_under_memory_pressure_are_what_they_would_be_alone():
    rng = random.Random(3)
    runner = fresh(step_tokens=40, capacity=384, running=4)
    kinds, made = [], []
    for _ in range(14):
        start, length = rng.randrange(3), rng.randrange(20, 75)
        kinds.append((PROMPT[start : start + length], rng.choice([SHALLOW, WITH_NUMBERS, None])))
        made.append(submit(runner, kinds[-1][0], BASE, 30, reader=kinds[-1][1]))
        runner.step()
        forget(runner)  # else it depends on what was read before
    while runner.step():
        forget(runner)
    assert runner.scheduler.preemptions
    for (prompt, reader), (_, recorder) in zip(kinds, made, strict=True):
        numbers = NUMBERS if reader is WITH_NUMBERS else None
        read = prompt if reader is None else as_read(prompt, reader, numbers)
        assert recorder.tokens == reference(tiny_model(), read, 30)
