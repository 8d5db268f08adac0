"""A request that is about to start: decided again by the queue as it is then, and not counted."""

import itertools
from dataclasses import asdict, replace

import numpy as np
import pytest

from controller import Analyzer, IncomingRequest, RequestPreferences
from policies import Action, Objectives, Reason, RulePolicy, read_observation
from policies.features import observation_vector
from policies.hysteresis import choose_with_hysteresis
from tests.support.controlled_host import ControlledHost

FEATURES = Analyzer()("What is this?")
REQUEST = IncomingRequest(FEATURES, 40, 100)
LONG = IncomingRequest(FEATURES, 900, 100)


@pytest.fixture
def host():
    return ControlledHost()


def redecide(host, controller, first, waited=0.1, request=REQUEST):
    return controller.redecide(request, first, host.status, waited)


def test_the_queue_is_the_one_of_the_start_not_of_the_arrival(host):
    controller = host.controller(load=0.9, dwell=0.0)
    idle = controller.decide(REQUEST)
    host.set_requests(4, 12)
    crowded = controller.decide(REQUEST)
    assert idle.action == Action("base") != crowded.action
    assert (idle.observation.waiting, crowded.observation.waiting) == (0, 12)
    late = redecide(host, controller, idle)
    assert late.action.variant == crowded.action.variant
    assert late.observation.wait == pytest.approx(crowded.observation.wait)
    assert late.observation.waiting == 12
    host.set_requests(1, 0)
    assert redecide(host, controller, crowded).action == Action("base")


def test_nothing_is_learned_of_a_request_that_does_not_arrive_again(host):
    controller = host.controller(load=0.9)
    first = controller.decide(REQUEST)
    known = controller._observer.estimators

    def state():
        return known.load.value, list(known.sizes._recent), dict(known.dwell._current)

    before = state()
    host.set_requests(4, 12)
    host.now += 5.0
    late = redecide(host, controller, first)
    assert late.action != first.action
    assert state() == before
    assert late.observation.rank == first.observation.rank


def test_what_it_waited_counts_and_the_queue_behind_it_does_not(host):
    controller = host.controller(ttft=0.5)
    first = controller.decide(REQUEST)
    host.set_requests(3, 0)
    at_once = redecide(host, controller, first, 0.0)
    waited = redecide(host, controller, first, 0.3)
    for one, other in zip(
        at_once.observation.candidates, waited.observation.candidates, strict=True
    ):
        assert other.ttft == pytest.approx(one.ttft + 0.3)
        assert other.total == pytest.approx(one.total + 0.3)
    host.set_requests(3, 12)
    behind = redecide(host, controller, first, 0.3)
    assert behind.observation.wait > 0
    assert [c.ttft for c in behind.observation.candidates] == pytest.approx(
        [c.ttft for c in waited.observation.candidates]
    )


def test_less_is_left_of_the_objective_after_a_wait(host):
    controller = host.controller(ttft=1.0)
    first = controller.decide(LONG)
    assert first.reason is Reason.BASE_FITS
    spare = 1.0 - first.chosen.ttft
    host.set_requests(0, 0)
    assert redecide(host, controller, first, 0.5 * spare, LONG).reason is Reason.BASE_FITS
    assert redecide(host, controller, first, 1.05 * spare, LONG).reason is Reason.TTFT


def test_reading_is_predicted_without_the_wait(host):
    """`prefill` of a learned policy's features is the same, however long the request waited."""
    controller = host.controller(ttft=1.0)
    first = controller.decide(LONG)
    late = redecide(host, controller, first, 0.4, LONG)
    found = [observation_vector(d.observation, ("base",))[2] for d in (first, late)]
    assert found[1] == pytest.approx(found[0])


def test_an_accepted_request_is_served(host):
    controller = host.controller(load=2.0, ttft=0.2)
    controller._observer._settings = _firm(controller._observer._settings)
    first = controller.decide(REQUEST)
    host.set_requests(4, 40)
    assert controller.decide(REQUEST).refused
    late = redecide(host, controller, first, 0.1)
    assert not late.refused
    assert late.observation.accepted, "the policy is not asked whether to refuse"
    floored = IncomingRequest(FEATURES, 40, 100, RequestPreferences(Objectives(max_loss=0.0)))
    late = redecide(host, controller, first, 0.1, floored)
    assert (late.action, late.reason) == (Action("base"), Reason.LEAST_BAD)


def test_it_takes_no_memory_from_those_who_wait_behind_it_into_account(host):
    controller = host.controller(ttft=None)
    host.set_requests(1, 0, capacity=1024)
    first = controller.decide(REQUEST)
    host.set_requests(1, 12, capacity=1024)
    assert controller.decide(REQUEST).observation.candidates[0].blocked is not None
    assert redecide(host, controller, first).observation.candidates[0].blocked is None


def test_it_can_be_replayed_from_the_log(host):
    controller = host.controller(load=0.9)
    first = controller.decide(REQUEST)
    host.set_requests(4, 12)
    late = redecide(host, controller, first)
    logged = read_observation(asdict(late.observation))
    assert choose_with_hysteresis(logged, RulePolicy(), 1.0) == (late.action, late.reason)


def test_a_named_action_and_an_only_one_need_no_second_decision(host):
    controller = host.controller()
    pinned = IncomingRequest(FEATURES, 40, 100, RequestPreferences(variant="ffn-50"))
    assert controller.decide(pinned).only_choice
    assert not controller.decide(REQUEST).only_choice


def _firm(settings):
    return replace(settings, objectives=replace(settings.objectives, firm=True))


def test_a_variant_that_requests_start_with_stays_for_the_dwell_time(host):
    """The queue at the start changes from one request to the next; the variant does not."""
    controller = host.controller(load=0.9, dwell=2.0)
    first, started, changes = controller.decide(REQUEST), "base", []
    for step in range(100):
        host.set_requests(4, 12) if step % 2 else host.set_requests(1, 0)
        late = redecide(host, controller, first)
        if late.action.variant != started:
            started = late.action.variant
            changes.append(host.now)
        host.now += 0.1
        controller._observer.estimators.load.observe(host.now, 0.09)
    assert len(changes) > 2
    assert min(b - a for a, b in itertools.pairwise(changes)) >= 2.0 - 1e-6


def test_readers_follow_the_queue_without_dwell(host):
    controller = host.controller(ttft=2.0, load=0.9, dwell=1e6)
    counts = np.array([20] * 885 + list(range(16, -1, -1)))[-901:]  # the last 16 are full
    request = replace(LONG, full_from={"read-70": counts})
    first = controller.decide(request)
    host.set_requests(1, 0)
    assert redecide(host, controller, first, request=request).action == Action("base")
    host.set_requests(4, 7)
    crowded = redecide(host, controller, first, request=request)
    host.set_requests(1, 0)
    idle = redecide(host, controller, first, request=request)
    assert [crowded.action.reader, idle.action.reader] == ["read-70", None]
    assert crowded.action.variant == idle.action.variant == "base"
