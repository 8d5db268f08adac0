"""Guessing ahead never changes what is written; it only saves steps."""

import pytest

from pruners.artefact.table import Cost, Quality, Table
from pruners.kv import make_eviction
from pruners.variant import base_spec, width_spec
from server.engine.backends.native import library as native_library
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.packed_weights import pack_weights
from server.engine.cache.kv_cache import KVCache
from server.engine.runner import Runner
from server.engine.sampling import SamplingParams
from server.engine.scheduler import Scheduler, SchedulerLimits
from server.engine.speculation.drafting import Drafter, choose_drafter
from server.engine.speculation.prompt_lookup import PromptLookup
from server.engine.speculation.step_cost import StepCost
from tests.support.driving import reference, run, runner_of, submit, variants_of, weights_of
from tests.support.parameters import converted
from tests.support.tiny import tiny_model

REPEATING = [7, 8, 9, 10, 11] * 6
PLAIN = [(31 * i) % 384 for i in range(40)]


def runner(speculate: bool, native: bool = False, drafter: Drafter | None = None) -> Runner:
    made = runner_of(weights_of(tiny_model()))
    decoder = made.decoder
    if native:
        packed = pack_weights(converted(tiny_model()), 8)
        decoder = NativeDecoder(packed, KVCache(packed.shape, 4096, packed.dtype, packed.device))
    scheduler = Scheduler(decoder.cache, SchedulerLimits(8, 64, speculate))
    return Runner(decoder, scheduler, drafter)


def answers(made: Runner, **more) -> tuple[list[list[int]], list[int], int]:
    variants = variants_of(made.decoder.weights)
    pairs = [
        submit(made, prompt, variants[name], 60, **more)
        for prompt in (REPEATING, PLAIN)
        for name in ("base", "mixed")
    ]
    steps = run(made)
    return [r.tokens for _, r in pairs], [s.lookup.accepted for s, _ in pairs], steps


@pytest.mark.slow
def test_greedy_answers_equal_transformers():
    made = runner(True)
    base = variants_of(made.decoder.weights)["base"]
    for prompt in (REPEATING, PLAIN):
        recorder = submit(made, prompt, base, 60)[1]
        run(made)
        assert recorder.tokens == reference(tiny_model(), prompt, 60)


@pytest.mark.skipif(not native_library.is_available(), reason="the native kernels are not built")
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.7, seed=3, logit_bias={7: 9.0, 8: 9.0, 9: 9.0}),
    ],
)
def test_native_answers_are_the_same_token_for_token(sampling):
    plain, none, steps = answers(runner(False, native=True), sampling=sampling)
    guessed, accepted, fewer = answers(runner(True, native=True), sampling=sampling)
    assert guessed == plain
    assert sum(none) == 0 < sum(accepted)
    assert fewer <= steps


def test_limits_and_stops_hold_inside_a_run_of_guesses():
    made = runner(True)
    variants = variants_of(made.decoder.weights)
    expected = reference(tiny_model(), REPEATING, 60)
    for length in (1, 2, 7, 30):
        assert submit_and_run(made, variants["base"], length) == expected[:length]
    stop = expected[12]
    _, recorder = submit(made, REPEATING, variants["base"], 60, eos_token_ids=frozenset([stop]))
    run(made)
    assert recorder.tokens == expected[: expected.index(stop) + 1]
    assert made.scheduler.cache.arena.used == made.scheduler.cache.prefixes.slots


def submit_and_run(made: Runner, variant, length: int) -> list[int]:
    _, recorder = submit(made, REPEATING, variant, length)
    run(made)
    return recorder.tokens


def test_nobody_is_preempted_for_a_guess():
    decoder = runner_of(weights_of(tiny_model()), capacity=128).decoder
    made = Runner(decoder, Scheduler(decoder.cache, SchedulerLimits(8, 128)))
    base = variants_of(decoder.weights)["base"]
    always = SamplingParams(temperature=0.0, logit_bias={7: 99.0})
    # A region of 64 slots each: one more token fits, two guesses beside it do not.
    long, _ = submit(made, [7] * 62, base, 30, sampling=always)
    short, _ = submit(made, [9] * 30, base, 30)
    made.step()
    assert long.lookup.propose(long.history, made.scheduler.cost.draft_cost(2), 6), "it would guess"
    made.step()
    assert made.scheduler.preemptions == 0
    assert (len(long.output), len(short.output)) == (2, 2)


def test_guesses_follow_the_text_and_stop_when_they_fail():
    drafts = PromptLookup()
    assert drafts.propose([1, 2, 3, 4, 1, 2, 3], verify_cost=0.05, limit=2) == [4, 1]
    assert PromptLookup().propose([6, 5, 5, 5], verify_cost=0.05, limit=3) == [5, 5, 5]
    for _ in range(20):
        drafts.record_verified(2, 0)
    proposed = [
        bool(drafts.propose([1, 2, 3, 4, 1, 2, 3], verify_cost=0.3, limit=4)) for _ in range(64)
    ]
    assert sum(proposed) == 2, "a probe now and then, no more"


def test_no_guess_is_worth_a_full_step():
    assert PromptLookup().propose([1, 2, 1, 2, 1, 2], verify_cost=1.0, limit=4) == []


def test_the_cost_of_rows_is_learned_from_steps():
    cost = StepCost()
    assert cost.draft_cost(1) == pytest.approx(0.1)
    for rows in (1, 4, 8, 2) * 10:
        cost.observe(rows, 0.005 + 0.001 * rows)
    assert cost.draft_cost(5) == pytest.approx(0.5, abs=0.01)


def drafter_of(name: str, agreement: float, cost: float) -> Drafter:
    return Drafter(variants_of(weights_of(tiny_model()))[name], agreement, cost)


@pytest.mark.slow
@pytest.mark.skipif(not native_library.is_available(), reason="the native kernels are not built")
@pytest.mark.parametrize(("native", "name"), [(True, "base"), (True, "mixed"), (False, "ffn-75")])
def test_what_a_variant_guesses_changes_no_answer(native, name):
    plain, none, steps = answers(runner(False, native))
    # Free guesses, so that they are made whatever becomes of them.
    made = runner(True, native, drafter_of(name, 0.9, 0.0))
    drafted, accepted, fewer = answers(made)
    assert drafted == plain
    assert sum(none) == 0
    if name == "base":  # it is always right
        assert sum(accepted) > 60
        assert fewer < steps
    assert made.scheduler.cache.arena.used == made.scheduler.cache.prefixes.slots


def test_a_variant_guesses_only_while_it_pays():
    made = Drafter(base_spec(weights_of(tiny_model()).shape), 0.8, 0.3)
    assert made.draft_count(0.1) > 0
    for _ in range(30):
        made.record_verified(2, 0)
    counts = [made.draft_count(0.1) for _ in range(200)]
    assert set(counts) == {0, 1}
    assert counts.count(1) == 3, "a probe now and then"
    assert Drafter(made.variant, 0.8, 0.9).draft_count(0.1) == 0


def test_a_sampled_answer_and_one_with_a_budget_are_not_guessed_for():
    made = runner(True, drafter=drafter_of("ffn-75", 0.9, 0.0))
    base = variants_of(made.decoder.weights)["base"]
    first, _ = submit(made, PLAIN, base, 40, sampling=SamplingParams(temperature=1.0, seed=1))
    second, _ = submit(made, PLAIN, base, 40, kv_budget=make_eviction(64))
    third, _ = submit(made, PLAIN, variants_of(made.decoder.weights)["mixed"], 40)
    while made.step():
        drafter = made.drafter
        assert drafter is not None
        assert not any(drafter.suits(answer, 0.1) for answer in (first, second, third))


def test_the_variant_with_the_highest_gain_is_chosen():
    shape = weights_of(tiny_model()).shape
    variants = {spec.name: spec for spec in (width_spec(shape, 0.75), width_spec(shape, 0.5))}

    def table(*rows: tuple[float, float]) -> Table:
        names = list(variants)
        return Table(
            quality={n: Quality(0.1, a, 9.0) for n, (a, _) in zip(names, rows, strict=True)},
            cost={n: Cost(1, c, c, 1, 0) for n, (_, c) in zip(names, rows, strict=True)},
        )

    found = choose_drafter(variants, table((0.9, 0.6), (0.8, 0.2)))
    assert found is not None
    assert found.variant.name == "ffn-50"
    assert choose_drafter(variants, table((0.85, 0.85), (0.7, 0.7))) is None
    assert choose_drafter(variants, Table()) is None


def test_every_guess_counts_as_scored_and_the_cache_is_named_by_variant():
    made, records = runner(True), []
    base = variants_of(made.decoder.weights)["base"]
    submit(made, REPEATING, base, 60)
    while made.step(records.append):
        pass
    assert all(
        len(record.rows) == 1 and record.rows[0][2] >= record.rows[0][1] for record in records
    )
    decode = [(record.rows[0][1], record.sampled) for record in records[1:]]
    assert max(rows for rows, _ in decode) > 1, "something was guessed"
    assert all(rows == scored for rows, scored in decode)
