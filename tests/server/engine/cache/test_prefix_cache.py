"""Kept prefixes change how much is computed, never what is written."""

import pytest

from pruners.kv import make_eviction
from tests.support.driving import run, runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model

PROMPT = [(5 * i) % 384 for i in range(70)]


@pytest.fixture
def runner():
    return runner_of(weights_of(tiny_model()), capacity=1024)


def answer(runner, prompt, name="base", **more):
    variant = variants_of(runner.decoder.weights)[name]
    sequence, recorder = submit(runner, prompt, variant, 8, **more)
    run(runner)
    return sequence, recorder.tokens


def test_a_conversation_goes_on_from_its_last_turn(runner):
    first, written = answer(runner, PROMPT)
    assert first.reused == 0
    longer = PROMPT + written + [9, 8, 7]
    again, found = answer(runner, longer)
    # All of the first turn but its last token, whose key nobody needed.
    assert again.reused == len(PROMPT) + len(written) - 1
    fresh = runner_of(weights_of(tiny_model()), capacity=1024)
    assert found == answer(fresh, longer)[1]


def test_the_same_prompt_computes_its_last_token_only(runner):
    expected = answer(runner, PROMPT)[1]
    again, found = answer(runner, PROMPT)
    assert again.reused == len(PROMPT) - 1
    assert found == expected


def test_another_variant_shares_nothing(runner):
    answer(runner, PROMPT)
    assert answer(runner, PROMPT, "ffn-50")[0].reused == 0
    assert answer(runner, PROMPT, "ffn-50")[0].reused == len(PROMPT) - 1


def test_what_can_be_reused_is_known_beforehand(runner):
    prefixes, reading = runner.scheduler.cache.prefixes, runner.scheduler.reading
    assert prefixes.reusable(PROMPT, reading) == {}
    answer(runner, PROMPT[:30] + [7] * 10)
    answer(runner, PROMPT[:40])
    answer(runner, PROMPT[:50], "ffn-50")
    known = prefixes.reusable(PROMPT, reading)
    assert set(known) == {("base", None), ("ffn-50", None)}
    assert answer(runner, PROMPT)[0].reused == known["base", None] == 40
    assert answer(runner, PROMPT, "ffn-50")[0].reused == known["ffn-50", None] == 50
    assert prefixes.reusable(PROMPT[1:], reading) == {}


def test_a_budget_neither_gives_nor_takes(runner):
    budget = make_eviction(32)
    assert answer(runner, PROMPT, kv_budget=budget)[0].reused == 0
    assert answer(runner, PROMPT)[0].reused == 0
    assert answer(runner, PROMPT, kv_budget=budget)[0].reused == 0


def test_positions_that_are_scored_are_computed(runner):
    answer(runner, PROMPT)
    assert answer(runner, PROMPT, prompt_logprobs=0)[0].reused == 0


def test_a_failed_step_leaves_nothing_to_start_from(runner, monkeypatch):
    def broken(segments):
        for segment in segments:
            segment.cache.advance(len(segment.tokens))  # as a real step does before it computes
        raise RuntimeError("out of luck")

    with monkeypatch.context() as patch:
        patch.setattr(runner.decoder, "forward", broken)
        submit(runner, PROMPT, variants_of(runner.decoder.weights)["base"], 8)
        with pytest.raises(RuntimeError, match="luck"):
            runner.step()
    assert runner.scheduler.cache.arena.used == 0
    assert answer(runner, PROMPT)[0].reused == 0


def test_what_a_preempted_answer_computed_itself_is_no_cached_prompt(runner):
    expected = answer(runner_of(weights_of(tiny_model())), PROMPT)[1]
    base = variants_of(runner.decoder.weights)["base"]
    sequence, recorder = submit(runner, PROMPT, base, 8)
    while len(sequence.output) < 4:
        runner.step()
    runner.scheduler._preempt(sequence)
    runner.step()
    assert len(sequence.output) == 5, "it goes on where it was, from its own kept prefix"
    assert sequence.reused == 0
    run(runner)
    assert recorder.tokens == expected


@pytest.mark.slow
def test_prefixes_give_way_to_sequences_the_oldest_first(runner):
    cache = runner.scheduler.cache
    for start in range(12):
        answer(runner, [start, *PROMPT])
    assert cache.arena.used <= cache.arena.capacity
    assert cache.prefixes.slots == cache.arena.used
    assert answer(runner, [0, *PROMPT])[0].reused == 0, "the oldest is gone"
    assert answer(runner, [11, *PROMPT])[0].reused == len(PROMPT)
    big = [(3 * i) % 384 for i in range(500)]
    assert len(answer(runner, big)[1]) == 8, "what is kept never stands in the way"
    while cache.prefixes.drop_oldest():
        pass
    assert cache.arena.used == 0
