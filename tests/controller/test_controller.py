"""The controller joined up, over planted telemetry and load."""

import itertools
import json
import time
from dataclasses import asdict, replace

import pytest

from controller import Analyzer, EngineStatus, IncomingRequest, StepTimeModel
from controller.sensitivity import FEATURES, Sensitivity
from policies import Action, Constraint, Objectives, Reason, RulePolicy, read_observation
from policies.hysteresis import choose_with_hysteresis
from pruners.variant import BASE
from telemetry import Snapshot, present
from tests.support.controlled_host import GIB, ControlledHost, decide


@pytest.fixture
def host():
    return ControlledHost()


def test_a_long_prompt_that_the_base_has_cached_is_no_reason_to_cut(host):
    controller, prompt = host.controller(ttft=0.05), 900
    said = Analyzer()("What is this?")
    afresh = controller.decide(IncomingRequest(said, prompt, 100))
    cached = controller.decide(
        IncomingRequest(said, prompt, 100, reusable={(BASE, None): prompt - 10})
    )
    assert afresh.reason == Reason.LEAST_BAD
    assert cached.action == Action("base")
    assert cached.chosen.ttft < 0.05 < afresh.chosen.ttft
    predicted = {c.action: c.ttft for c in cached.observation.candidates}
    assert predicted[Action("base", 512)] > 0.05, "a budget starts from nothing"


def test_idle_base_then_busy_smaller_then_base_again(host):
    controller = host.controller(load=0.9)
    assert decide(controller).action == Action("base")
    host.set_requests(4, 12)
    crowded = decide(controller)
    assert crowded.action.variant != "base"
    assert crowded.reason in (Reason.QUEUE, Reason.LEAST_BAD)
    assert crowded.chosen.loss > 0
    host.set_requests(1, 0)
    kept = decide(controller)
    assert (kept.action.variant, kept.reason) == (crowded.action.variant, Reason.DWELL)
    host.now += 1.01
    assert decide(controller).action == Action("base")


def test_it_changes_at_most_once_a_dwell(host):
    controller = host.controller(dwell=2.0, load=0.9)
    seen, changes = "base", []
    for step in range(200):  # the load jumps up and down every 100 ms
        host.set_requests(4, 12) if step % 2 else host.set_requests(1, 0)
        variant = decide(controller, prompt=1, output=1).action.variant
        if variant != seen:
            changes.append(host.now)
            seen = variant
        host.now += 0.1
        controller._observer.estimators.load.observe(host.now, 0.09)
    assert len(changes) > 4
    assert min(b - a for a, b in itertools.pairwise(changes)) >= 2.0 - 1e-6


def test_other_objectives_have_a_variant_of_their_own(host):
    controller = host.controller(load=0.9)
    host.set_requests(4, 12)
    narrow = decide(controller).action.variant
    assert decide(controller, objectives=Objectives(max_loss=0.0)).action.variant == "base"
    assert decide(controller).action.variant == narrow
    assert decide(controller, variant="base").action.variant == "base"  # a pin is no change
    assert decide(controller).action.variant == narrow


def test_small_requests_keep_the_base_longer_and_a_variant_of_their_own(host):
    controller = host.controller(ttft=2.0)
    for work in [0.1] * 90:
        controller._observer.estimators.sizes.observe(work)
    assert decide(controller, prompt=300, output=100).reason is Reason.BASE_FITS
    controller._observer.estimators.load.observe(host.now, 3.16 * 0.37)
    host.set_requests(4, 0)
    large = decide(controller, prompt=300, output=100)
    small = decide(controller, prompt=10, output=10)
    assert large.observation.rank > 0.5 > small.observation.rank
    assert (large.reason, small.reason) == (Reason.QUEUE, Reason.BASE_FITS)
    host.status = EngineStatus((), 4, 256, 0, 4096)
    assert decide(controller, prompt=300, output=100).reason is Reason.DWELL
    assert decide(controller, prompt=10, output=10).reason is Reason.BASE_FITS


def test_what_the_shield_forbids_is_not_held(host):
    controller = host.controller(dwell=1e6, load=0.9)
    decide(controller)
    host.set_requests(4, 12)
    narrow = decide(controller)
    assert narrow.action.variant != "base"
    host.set_requests(1, 0)
    held = decide(controller)
    assert held.reason is Reason.DWELL
    forbidden = tuple(
        replace(
            c, blocked=Constraint.KV_MEMORY if c.action.variant == held.action.variant else None
        )
        for c in held.observation.candidates
    )
    observation = replace(held.observation, candidates=forbidden)
    assert choose_with_hysteresis(observation, RulePolicy(), 1e6) == (
        Action("base"),
        Reason.BASE_FITS,
    )


def test_a_floor_in_a_late_queue_is_refused_not_broken(host):
    host.set_requests(4, 60)
    controller = host.controller()
    assert decide(controller, objectives=Objectives(max_loss=0.01)).refused
    assert not decide(controller).refused  # without a floor it may be cut
    assert not decide(controller, objectives=Objectives(ttft=1e4, max_loss=0.01)).refused


def test_a_predictor_makes_losses_depend_on_the_prompt(host):
    weights = [0.0] * len(FEATURES)
    weights[FEATURES.index("questions")] = 0.3  # a question loses .3 more than the mean
    predictor = Sensitivity(
        "f", "patterns", (0.0,) * len(weights), (1.0,) * len(weights),
        {"ffn-50": 1.5, "depth-9": 0.7}, {"ffn-50": tuple(weights), "depth-9": tuple(weights)},
    )  # fmt: skip
    controller = host.controller(sensitivity=predictor)
    losses = [
        {
            c.action.label: c.loss
            for c in controller.observe(IncomingRequest(Analyzer()(text), 40, 100)).candidates
        }
        for text in ("Tell me this.", "What is this?")
    ]
    assert losses[0]["ffn-50"] == pytest.approx(1.5)
    assert losses[1]["ffn-50"] == pytest.approx(1.8)
    assert losses[1]["depth-9"] == pytest.approx(1.0)
    assert losses[0]["base"] == losses[1]["base"] == 0.0


def test_a_decision_is_replayed_from_its_record(host):
    host.set_requests(4, 12)
    controller = host.controller(load=0.9)
    for preferences in ({}, {"variant": "ffn-50"}, {"objectives": Objectives(max_loss=0.8)}):
        decision = decide(controller, **preferences)
        record = json.loads(json.dumps(asdict(decision.observation)))
        again = choose_with_hysteresis(read_observation(record), RulePolicy(), controller.dwell)
        assert again == (decision.action, decision.reason)


def test_a_quality_floor_is_kept_however_busy(host):
    host.set_requests(4, 40)
    decision = decide(host.controller(load=0.9), objectives=Objectives(max_loss=0.8))
    assert decision.chosen.loss <= 0.8
    assert "quality_floor" in decision.masked


def test_pins_win_over_everything(host):
    host.set_requests(4, 40)
    decision = decide(host.controller(), variant="base")
    assert (decision.action, decision.reason) == (Action("base"), Reason.PINNED)
    decision = decide(host.controller(), kv_budget=100)
    assert decision.action == Action("base", 100)


def test_little_memory_means_a_smaller_cache_before_a_smaller_model(host):
    host.snapshot = Snapshot(
        taken_at=0.0,
        memory_total_bytes=present(16 * GIB, "test"),
        memory_available_bytes=present(0.5 * GIB, "test"),
    )
    decision = decide(host.controller(), prompt=450, output=100)
    assert (decision.action, decision.reason) == (Action("base", 512), Reason.MEMORY)
    assert "host_memory" in decision.masked
    short = decide(host.controller(), prompt=100, output=100)
    assert short.action == Action("base"), "a short answer needs no budget"


def test_a_full_cache_is_seen_before_it_overflows(host):
    host.set_requests(2, 0, capacity=1200)
    decision = decide(host.controller(ttft=None), prompt=1000, output=100)
    assert decision.action == Action("base", 512)
    assert "kv_memory" in decision.masked


def test_a_budget_that_keeps_all_tokens_saves_time_and_no_memory(host):
    host.set_requests(2, 0, capacity=1200)
    evicts, keeps = (
        decide(host.controller(ttft=None, budgets_free_memory=free), prompt=1000, output=100)
        for free in (True, False)
    )
    (evicting,), (keeping,) = (
        [c for c in d.observation.candidates if c.action == Action("base", 512)]
        for d in (evicts, keeps)
    )
    assert evicting.blocked is None
    assert keeping.blocked == Constraint.KV_MEMORY
    assert keeping.tpot == evicting.tpot


def test_missing_readings_are_no_obstacle(host):
    host.snapshot = Snapshot(taken_at=0.0)
    assert decide(host.controller()).action == Action("base")


def test_a_decision_is_quick(host):
    host.set_requests(4, 60)
    controller = host.controller()
    decide(controller)
    started = time.perf_counter()
    for _ in range(50):
        decide(controller)
    # Far above the 1 ms that it should take: this guards against an accident, not a regression.
    assert (time.perf_counter() - started) / 50 < 0.05


def test_the_expected_answer_follows_what_answers_are(host):
    controller = host.controller()
    host.set_requests(4, 8)
    before = decide(controller).observation.wait
    for _ in range(200):
        controller.observe_answer(200, 10)
    assert decide(controller).observation.wait < before / 2
    assert isinstance(controller.step_time_model, StepTimeModel)
