"""A sequence that is preempted at any moment ends as if nothing had happened."""

from dataclasses import replace

import pytest

from pruners.kv import make_eviction
from server.engine.detokenizer import StopRules
from server.engine.runner import Runner
from server.engine.sampling import SamplingParams
from server.engine.sequence import Delta, FinishReason
from server.engine.speculation.drafting import Drafter
from tests.support.driving import Recorder, runner_of, submit, variants_of, weights_of
from tests.support.tiny import tiny_model

PROMPT = [(31 * i) % 384 for i in range(75)]  # read in three steps
REPEATING = [7, 8, 9, 10, 11] * 15
WRITTEN = 24
WEIGHTS = weights_of(tiny_model())
KINDS = {
    "plain": {},
    "sampled": {"sampling": SamplingParams(temperature=0.8, top_p=0.9, seed=3)},
    "scored": {"logprobs": 2, "prompt_logprobs": 2},
    "scored-only": {"logprobs": 2, "prompt_logprobs": 2, "max_tokens": 0},
    "stops": {"stop": StopRules(("xyzzy", "qq"), frozenset({3})), "min_tokens": 30},
    "budget": {"kv_budget": make_eviction(48)},
    "budget-key-diff": {"kv_budget": make_eviction(64, "key-diff")},
    "budget-snap": {"kv_budget": make_eviction(64, "snap")},
    "narrowed": {},
    "guessed": {},
    "drafted": {},
}


def fresh(kind: str) -> Runner:
    """Guesses, which depend on time, are made only where they are what is tested."""
    runner = runner_of(WEIGHTS, step_tokens=32)
    guessing = kind in ("guessed", "drafted")
    runner.scheduler.limits = replace(runner.scheduler.limits, speculate=guessing)
    if kind == "drafted":
        variant = variants_of(runner.decoder.weights)["ffn-75"]
        runner.drafter = Drafter(variant, 0.9, 0.0)
    return runner


def drive(kind: str, preempted_after: int | None) -> tuple[Runner, Recorder, int]:
    """One answer, and how many steps it took; with a preemption after some step."""
    runner = fresh(kind)
    variants = variants_of(runner.decoder.weights)
    prompt = REPEATING if kind in ("guessed", "drafted") else PROMPT
    more = {"max_tokens": WRITTEN, **KINDS[kind]}
    sequence, recorder = submit(runner, prompt, variants["base"], **more)
    steps = 0
    while runner.step():
        steps += 1
        if kind == "narrowed" and len(sequence.output) == 12 and not sequence.narrowed:
            sequence.narrow(variants["mixed"])
        if steps == preempted_after and not sequence.ended:
            runner.scheduler._preempt(sequence)
            while runner.scheduler.cache.prefixes.drop_oldest():
                pass  # all of it is computed again
    return runner, recorder, steps


def scores(deltas: list[Delta]) -> list[tuple[int, float]]:
    found = []
    for delta in deltas:
        found += [*(delta.prompt_logprobs or ()), *([delta.logprob] if delta.logprob else [])]
    return [(one.token, one.logprob) for one in found]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_the_same_whenever_it_was_preempted(kind):
    _, expected, steps = drive(kind, None)
    reason = expected.last.finish_reason
    assert reason in (FinishReason.LENGTH, FinishReason.STOP)
    moments = sorted({1, 2, 3, 4, 15, 17, steps - 1} & set(range(1, steps)))
    preemptions = 0
    for moment in moments:
        runner, found, _ = drive(kind, moment)
        preemptions += runner.scheduler.preemptions
        assert (found.tokens, found.text) == (expected.tokens, expected.text), moment
        assert (found.last.finish_reason, found.last.stop_reason) == (
            reason,
            expected.last.stop_reason,
        )
        wanted = scores(expected.deltas)
        assert [token for token, _ in scores(found.deltas)] == [token for token, _ in wanted]
        assert [value for _, value in scores(found.deltas)] == pytest.approx(
            [value for _, value in wanted], abs=1e-4
        )
        arena, prefixes = runner.scheduler.cache.arena, runner.scheduler.cache.prefixes
        assert arena.used == prefixes.slots
    assert preemptions >= len(moments) - 2, "guesses may have saved the last steps"


@pytest.mark.slow
def test_two_preemptions_while_it_is_computed_again_change_nothing():
    for kind in ("scored", "budget", "narrowed"):
        expected = drive(kind, None)[1]
        runner = fresh(kind)
        variants = variants_of(runner.decoder.weights)
        sequence, found = submit(
            runner, PROMPT, variants["base"], **{"max_tokens": WRITTEN, **KINDS[kind]}
        )
        steps = 0
        while runner.step():
            steps += 1
            if kind == "narrowed" and len(sequence.output) == 12 and not sequence.narrowed:
                sequence.narrow(variants["mixed"])
            if steps in (2, 3, 20, 22, 24):
                runner.scheduler._preempt(sequence)
                while runner.scheduler.cache.prefixes.drop_oldest():
                    pass
        assert found.tokens == expected.tokens
        pairs = zip(scores(found.deltas), scores(expected.deltas), strict=True)
        assert all(one[0] == other[0] and abs(one[1] - other[1]) < 1e-4 for one, other in pairs)
