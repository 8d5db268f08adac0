"""Scheduling under pressure: every answer is the one it would have been alone."""

import pytest
import torch

from controller import StepRecord
from pruners.kv import make_eviction
from server.engine.backends.base import Segment
from server.engine.detokenizer import StopRules
from server.engine.sampling import SamplingParams
from server.engine.sequence import FinishReason
from server.engine.speculation.drafting import Drafter
from server.engine.warmup import FirstMeasurements
from tests.support.driving import (
    GREEDY,
    TOKENIZER,
    reference,
    run,
    runner_of,
    submit,
    variants_of,
    weights_of,
)
from tests.support.tiny import tiny_model


def fresh(**limits):
    runner = runner_of(weights_of(tiny_model()), **limits)
    return runner, variants_of(runner.decoder.weights)


@pytest.mark.slow
def test_preemption_under_memory_pressure_does_not_change_an_answer():
    prompts = [[i, i + 1, i + 2] for i in range(3, 9)]
    expected = [reference(tiny_model(), prompt, 100) for prompt in prompts]
    runner, variants = fresh(capacity=256)
    recorders = [submit(runner, prompt, variants["base"], 100)[1] for prompt in prompts]
    run(runner)
    assert runner.scheduler.preemptions > 0
    assert [r.tokens for r in recorders] == expected
    assert runner.scheduler.cache.arena.used == runner.scheduler.cache.prefixes.slots


def test_answers_start_in_arrival_order_and_never_more_than_the_limit():
    runner, variants = fresh(running=2)
    sequences = [submit(runner, [5, 6], variants["base"], 5)[0] for _ in range(6)]
    while runner.step():
        assert len(runner.scheduler.running) <= 2
    firsts = [s.first_token_at for s in sequences]
    assert firsts == sorted(firsts)


def test_a_long_prompt_does_not_stop_running_answers():
    runner, variants = fresh(step_tokens=16)
    _, short = submit(runner, [5, 6], variants["base"], 30)
    runner.step()
    submit(runner, range(100), variants["base"], 5)
    for _ in range(5):
        before = len(short.tokens)
        runner.step()
        assert len(short.tokens) == before + 1


def test_cancelling_frees_the_slot_at_the_next_step():
    runner, variants = fresh()
    sequence, recorder = submit(runner, [5, 6], variants["base"], 100)
    runner.step()
    assert runner.scheduler.cache.arena.used > 0
    sequence.cancelled = True
    assert not runner.step()
    assert recorder.last.finish_reason is FinishReason.ABORT
    assert runner.scheduler.cache.arena.used == 0
    assert not runner.scheduler.running


def test_seeded_sampling_does_not_depend_on_the_batch():
    def write(neighbours):
        runner, variants = fresh()
        params = SamplingParams(temperature=1.0, top_p=0.9, seed=11)
        _, recorder = submit(runner, [9, 8, 7], variants["base"], 30, sampling=params)
        for i in range(neighbours):
            submit(runner, [i], variants["ffn-50"], 30)
        run(runner)
        return recorder.tokens

    assert write(0) == write(5)


def test_prompt_and_token_logprobs_equal_transformers():
    prompt = list(range(40, 110))
    runner, variants = fresh(step_tokens=32)
    _, recorder = submit(runner, prompt, variants["base"], 4, logprobs=3, prompt_logprobs=3)
    run(runner)
    tokens = prompt + recorder.tokens
    scores = tiny_model()(torch.tensor([tokens])).logits[0].log_softmax(-1)
    found = [*recorder.deltas[0].prompt_logprobs, *(d.logprob for d in recorder.deltas)]
    assert [item.token for item in found] == tokens[1:]
    for position, item in enumerate(found):
        assert abs(item.logprob - float(scores[position, item.token])) < 2e-3
        best = scores[position].topk(3)
        likeliest = sorted(dict(item.top).values(), reverse=True)[:3]
        assert likeliest == pytest.approx(best.values.tolist(), abs=2e-3)
        assert item.top[0] == (item.token, item.logprob)


@pytest.mark.slow
@pytest.mark.parametrize("state", ["waiting", "mid-prompt", "decoding", "drafted", "preempted"])
def test_a_cancelled_answer_holds_nothing_after_one_step(state):
    runner, variants = fresh(running=1 if state == "waiting" else 8, step_tokens=16)
    base = variants["base"]
    if state == "drafted":
        runner.drafter = Drafter(variants["ffn-75"], 0.9, 0.0)
    _, other = submit(runner, [5, 6], base, 40)
    runner.step()
    prompt = range(100) if state == "mid-prompt" else [7, 8, 9]
    sequence, recorder = submit(runner, prompt, base, 200)
    for _ in range(1 if state in ("waiting", "mid-prompt") else 4):
        runner.step()
    if state == "preempted":
        runner.scheduler._preempt(sequence)
    assert (sequence.cache is None) == (state in ("waiting", "preempted"))
    assert sequence.in_prompt == (state in ("waiting", "mid-prompt", "preempted"))
    sequence.cancelled = True
    runner.step()
    assert recorder.last.finish_reason is FinishReason.ABORT
    assert sequence.cache is None
    assert sequence not in [*runner.scheduler.running, *runner.scheduler.waiting]
    run(runner)
    assert other.last.finish_reason is FinishReason.LENGTH
    assert runner.scheduler.cache.arena.used == runner.scheduler.cache.prefixes.slots


@pytest.mark.slow
def test_many_cancelled_ones_in_the_line_are_gone_in_one_step():
    runner, variants = fresh(running=2)
    base = variants["base"]
    alive = [submit(runner, [5, 6], base, 4)[1] for _ in range(3)]
    gone = [submit(runner, [7, 8], base, 4) for _ in range(3000)]
    alive.append(submit(runner, [5, 6], base, 4)[1])
    for sequence, _ in gone:
        sequence.cancelled = True
    runner.step()
    assert all(r.last.finish_reason is FinishReason.ABORT for _, r in gone)
    assert len(runner.scheduler.waiting) == 2
    run(runner)
    assert all(len(r.tokens) == 4 for r in alive)


@pytest.mark.parametrize("scored", [True, False])
def test_a_prompt_that_fills_the_context_can_be_read_without_writing(scored):
    model = tiny_model()
    prompt = [(31 * i) % 384 for i in range(model.config.max_position_embeddings)]
    runner, variants = fresh(capacity=len(prompt))
    sequence, recorder = submit(
        runner, prompt, variants["base"], 0, prompt_logprobs=1 if scored else None, logprobs=1
    )
    run(runner)
    (only,) = recorder.deltas
    assert (only.finish_reason, only.token, only.text) == (FinishReason.LENGTH, None, "")
    assert sequence.ended
    assert not sequence.output
    if scored:
        logits = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        found = only.prompt_logprobs
        assert [one.token for one in found] == prompt[1:]
        wanted = logits[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        assert [one.logprob for one in found] == pytest.approx(wanted.tolist(), abs=2e-3)
    else:
        assert only.prompt_logprobs is None


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=2)])
def test_nothing_ends_an_answer_before_its_least_length(sampling):
    runner, variants = fresh()
    base = variants["base"]
    _, free = submit(runner, [5, 9], base, 12, sampling=sampling)
    run(runner)
    pieces = tuple({TOKENIZER.decode([token]) for token in free.tokens} - {""})
    every = frozenset(free.tokens)
    for more in ({"eos_token_ids": every}, {"stop": StopRules(token_ids=every)}):
        _, found = submit(runner, [5, 9], base, 12, sampling=sampling, min_tokens=6, **more)
        run(runner)
        assert len(found.tokens) >= 6
        assert not every & set(found.tokens[:6])
    _, found = submit(
        runner, [5, 9], base, 12, sampling=sampling, min_tokens=6, stop=StopRules(pieces)
    )
    run(runner)
    assert found.tokens[:6] == free.tokens[:6], "stop strings forbid no token"
    assert 6 < len(found.tokens) <= 12
    assert found.last.stop_reason in pieces
    assert found.text.startswith(TOKENIZER.decode(free.tokens[:5], skip_special_tokens=True))


def test_finish_reasons():
    runner, variants = fresh()
    free = reference(tiny_model(), [5, 9], 12)
    base = variants["base"]
    _, length = submit(runner, [5, 9], base, 12)
    _, eos = submit(runner, [5, 9], base, 12, eos_token_ids=frozenset({free[4]}))
    _, late = submit(runner, [5, 9], base, 12, eos_token_ids=frozenset({free[4]}), min_tokens=12)
    rules = StopRules(token_ids=frozenset({free[2]}))
    _, token = submit(runner, [5, 9], base, 12, stop=rules)
    piece = TOKENIZER.decode(free[3:6], skip_special_tokens=True)
    _, string = submit(runner, [5, 9], base, 12, stop=StopRules((piece,)))
    run(runner)
    assert (length.last.finish_reason, length.tokens) == (FinishReason.LENGTH, free)
    first = free.index(free[4])
    assert (eos.last.finish_reason, eos.tokens) == (FinishReason.STOP, free[: first + 1])
    assert free[4] not in late.tokens[:11]
    assert token.last.stop_reason == free[2]
    assert string.last.stop_reason == piece
    assert piece not in string.text


@pytest.mark.slow
def test_a_budget_and_a_preemption_together_still_end():
    runner, variants = fresh(capacity=256)
    budget = make_eviction(48)
    made = [submit(runner, range(60), variants["base"], 90, kv_budget=budget)[1] for _ in range(4)]
    run(runner)
    assert all(len(r.tokens) == 90 for r in made)
    assert runner.scheduler.cache.arena.used == 0


@pytest.mark.parametrize("narrower", ["ffn-50", "mixed"])
def test_a_sequence_may_go_on_with_a_nested_variant(narrower: str):
    """The oracle drives the decoder by hand: base for a while, then the narrow variant."""
    runner, variants = fresh()
    sequence, recorder = submit(runner, [5, 6, 7], variants["base"], 20)
    while len(recorder.tokens) < 8:
        runner.step()
    sequence.narrow(variants[narrower])
    run(runner)

    decoder = fresh()[0].decoder
    cache = decoder.cache.open()
    assert cache.reserve(64)
    tokens, written = [5, 6, 7], []
    while len(written) < 20:
        spec = variants["base" if len(written) < 8 else narrower]
        logits = decoder.logits(decoder.forward([Segment(tokens, cache, spec)]))
        tokens = [int(logits[-1].argmax())]
        written += tokens
    assert recorder.tokens == written
    assert runner.scheduler.cache.prefixes.slots == 0, "mixed keys and values serve nobody else"


def test_an_answer_that_has_ended_is_not_narrowed_and_a_preempted_one_may_be():
    runner, variants = fresh()
    sequence, _ = submit(runner, [5, 6, 7], variants["base"], 6)
    runner.step()
    runner.scheduler._preempt(sequence)
    assert sequence.may_narrow(variants["ffn-50"])
    run(runner)
    assert sequence.ended
    assert not sequence.may_narrow(variants["ffn-50"])


@pytest.mark.parametrize(("now", "wanted"), [("ffn-50", "base"), ("mixed", "ffn-50")])
def test_nothing_but_a_nested_variant_is_allowed_within_an_answer(now: str, wanted: str):
    runner, variants = fresh()
    sequence, _ = submit(runner, [5, 6, 7], variants[now], 20)
    runner.step()
    with pytest.raises(ValueError, match="nothing else may change"):
        sequence.narrow(variants[wanted])
    assert sequence.variant == variants[now]


def test_the_first_measurements_leave_out_what_has_no_room_and_give_all_room_back():
    for capacity, sizes in ((4096, {(1, 32), (3, 96), (3, 768)}), (512, {(1, 32), (3, 96)})):
        made = runner_of(weights_of(tiny_model()), capacity=capacity, running=3)
        free = made.scheduler.cache.open()
        base = variants_of(made.decoder.weights)["base"]
        measured: list[list[StepRecord]] = []
        first = FirstMeasurements(made, [base], measured.append)
        while first.step():
            pass
        (records,) = measured
        found = {(n, held) for r in records for _, n, held in r.rows if held}
        assert found == {s for s in sizes if s[1] // s[0] < made.decoder.weights.context}
        assert {n for r in records for _, n, held in r.rows if not held} == {32, 128}
        assert all(record.seconds > 0 for record in records)
        assert free.reserve(capacity - 1), "nothing is held any more"
