"""The rule policy as a pure function: what it sees decides what it answers."""

import json
from dataclasses import asdict, replace

import pytest

from policies import (
    Action,
    Candidate,
    Constraint,
    Objectives,
    Observation,
    Reason,
    RulePolicy,
    StaticPolicy,
    read_observation,
)
from policies.hysteresis import choose_with_hysteresis

BASE = Action("base")
SIZES = [("base", 0.0, 1.0), ("ffn-87.5", 0.2, 0.92), ("depth-24", 0.9, 0.8), ("ffn-50", 1.7, 0.7)]


def candidate(name, loss, cost, kv=None, blocked=None, ttft=0.1):
    return Candidate(Action(name, kv), loss, cost, ttft, 0.02 * cost, blocked, 3.0 * cost)


def observe(wait=0.0, candidates=None, battery=None, demand=0.0, rank=1.0, **objectives):
    return Observation(
        candidates=tuple(candidates or [candidate(*size) for size in SIZES]),
        objectives=Objectives(**{"ttft": 1.0, **objectives}),
        wait=wait,
        complexity=0.5,
        on_battery=None if battery is None else True,
        battery_charge=battery,
        demand=demand,
        rank=rank,
    )


def test_an_idle_host_gets_the_base():
    assert RulePolicy().choose(observe()) == (BASE, Reason.BASE_FITS)


@pytest.mark.parametrize(
    ("wait", "demand", "variant"),
    [
        (0.0, 0.98, "base"),
        (0.04, 3.0, "base"),  # where hardly anybody waits there is room
        (0.8, 0.15, "base"),  # a long queue has room for little work
        (0.25, 0.98, "base"),
        (0.25, 1.06, "ffn-87.5"),
        (0.1, 1.22, "ffn-87.5"),  # the queue may grow
        (0.5, 0.78, "ffn-87.5"),  # and should shrink
        (0.25, 1.25, "ffn-50"),  # depth-24 would be cheap enough, but a mix of others keeps more
    ],
)
def test_the_largest_shrink_no_more_than_demand_and_queue_need(wait, demand, variant):
    action, reason = RulePolicy().choose(observe(wait, demand=demand))
    assert action.variant == variant
    assert reason == (Reason.BASE_FITS if variant == "base" else Reason.QUEUE)


@pytest.mark.parametrize(
    ("demand", "share", "below", "above"),
    [
        (1.25, 0.455, "ffn-50", "ffn-87.5"),  # (.8 - .7) / (.92 - .7)
        (1.0625, 0.265, "ffn-87.5", "base"),  # (.941 - .92) / (1 - .92)
    ],
)
def test_small_requests_get_the_better_of_the_two_that_are_mixed(demand, share, below, above):
    def chosen(rank):
        return RulePolicy().choose(observe(0.25, demand=demand, rank=rank))[0].variant

    for rank in (0.0, share - 0.02):
        assert chosen(rank) == above
    for rank in (share + 0.02, 1.0):
        assert chosen(rank) == below
    slow = [candidate(*size, ttft=2.0 if size[0] == above else 0.1) for size in SIZES]
    late = RulePolicy().choose(observe(0.25, slow, demand=demand, rank=0.0))
    assert late[0].variant == below, "which would miss its objective otherwise"


def test_more_work_than_the_cheapest_gets_done_still_gets_the_cheapest():
    assert RulePolicy().choose(observe(0.5, demand=3.0)) == (Action("ffn-50"), Reason.LEAST_BAD)


def test_who_would_come_too_late_is_refused_if_the_objective_is_firm():
    late = observe(0.96, demand=3.0, rank=0.0, firm=True)
    assert RulePolicy().choose(late) == (Action("ffn-50"), Reason.LATE)
    assert RulePolicy().choose(observe(0.96, demand=3.0)) == (Action("ffn-50"), Reason.LEAST_BAD)
    assert RulePolicy().choose(observe(30.0, demand=1.0, ttft=None)) == (BASE, Reason.BASE_FITS)


def test_the_largest_are_refused_first():
    def refused(wait, rank):
        seen = observe(wait, demand=0.4, rank=rank, firm=True)
        return RulePolicy().choose(seen)[1] is Reason.LATE

    for rank, longest in ((0.0, 0.85), (0.5, 0.85), (0.75, 0.65), (1.0, 0.45)):
        assert not refused(longest - 0.01, rank)
        assert refused(longest + 0.01, rank)


@pytest.mark.parametrize(
    ("demand", "refused_above"),
    [
        (0.98, 1.0),
        (1.05, 1.0 / 1.05),  # no cut is worth its loss, so that the base serves what it can
        (1.25, 0.9),  # and above a tenth of the work it is cut even so
        (3.0, 0.9),
    ],
)
def test_firm_objectives_turn_the_largest_away_where_cuts_lose_more(demand, refused_above):
    def reason(rank, **more):
        seen = observe(0.25, demand=demand, rank=rank, firm=True)
        return RulePolicy().choose(replace(seen, **more))[1]

    assert reason(refused_above - 0.01) is not Reason.LATE
    if refused_above < 1:
        assert reason(refused_above + 0.01) is Reason.LATE
        assert reason(refused_above + 0.01, queued=0.1) is not Reason.LATE, "it was accepted"
        late = observe(0.25, demand=demand, rank=refused_above + 0.01)
        assert RulePolicy().choose(late)[1] is not Reason.LATE, "the objective is not firm"


def test_nobody_is_turned_away_while_cuts_are_worth_it():
    """At a mean cost of .53 a reader of .5 that loses .02 suffices; at .48 it does not."""
    for demand, late in ((1.9, False), (2.08, True)):
        seen = with_readers(wait=0.25, demand=demand, rank=0.99, firm=True)
        assert (RulePolicy().choose(seen)[1] is Reason.LATE) == late


def test_what_the_refused_would_have_cost_is_there_for_the_others():
    """The mean cost of .8 becomes .8 / .9, of which the share (.889 - .7) / (.92 - .7) has .92."""
    for rank, variant in ((0.76, "ffn-87.5"), (0.79, "ffn-50")):
        seen = observe(0.25, demand=1.25, rank=rank, firm=True)
        for one in (seen, replace(seen, queued=0.4)):
            assert RulePolicy().choose(one)[0].variant == variant


def test_a_tpot_objective_takes_the_least_loss_that_keeps_it():
    assert RulePolicy().choose(observe(tpot=0.0185)) == (Action("ffn-87.5"), Reason.TPOT)


def test_an_objective_that_nothing_keeps_costs_no_quality():
    assert RulePolicy().choose(observe(tpot=0.001)) == (BASE, Reason.LEAST_BAD)


def test_the_quality_floor_holds_even_when_nothing_fits():
    low = [candidate(n, a, c, blocked=Constraint.QUALITY_FLOOR) for n, a, c in SIZES[1:]]
    base = candidate(*SIZES[0], blocked=Constraint.KV_MEMORY)
    assert RulePolicy().choose(observe(0.5, [base, *low])) == (BASE, Reason.LEAST_BAD)


def test_what_the_shield_blocks_is_not_chosen():
    blocked = [candidate(n, a, c, blocked=Constraint.KV_MEMORY) for n, a, c in SIZES[:2]]
    rest = [candidate(*size) for size in SIZES[2:]]
    found = RulePolicy().choose(observe(candidates=blocked + rest))
    assert found == (Action("depth-24"), Reason.MEMORY)
    action, reason = RulePolicy().choose(observe(candidates=blocked))
    assert (action.variant, reason) == ("base", Reason.LEAST_BAD)


def test_a_smaller_cache_goes_before_a_smaller_model():
    candidates = [
        candidate("base", 0.0, 1.0, blocked=Constraint.HOST_MEMORY),
        candidate("base", 0.05, 1.0, kv=512),
        candidate("ffn-50", 1.7, 0.7, blocked=Constraint.HOST_MEMORY),
        candidate("ffn-50", 1.75, 0.7, kv=512),
    ]
    found = RulePolicy().choose(observe(candidates=candidates))
    assert found == (Action("base", 512), Reason.MEMORY)


def test_a_low_battery_bounds_the_cost_and_a_missing_one_changes_nothing():
    assert RulePolicy().choose(observe(battery=0.2)) == (Action("depth-24"), Reason.BATTERY)
    assert RulePolicy().choose(observe(battery=0.9))[0] == BASE
    assert RulePolicy().choose(observe(battery=None))[0] == BASE


def test_an_unmeasured_loss_is_the_last_choice():
    candidates = [
        candidate("base", 0.0, 1.0, blocked=Constraint.KV_MEMORY),
        candidate("new", None, 0.5),
        candidate("ffn-50", 1.7, 0.7),
    ]
    assert RulePolicy().choose(observe(candidates=candidates))[0] == Action("ffn-50")


def test_static_keeps_its_variant():
    policy = StaticPolicy("ffn-50")
    assert policy.choose(observe(0.5)) == (Action("ffn-50"), Reason.FIXED)
    candidates = [candidate("ffn-50", 1.7, 0.7, blocked=Constraint.HOST_MEMORY)]
    candidates.append(candidate("ffn-50", 1.8, 0.7, kv=256))
    assert policy.choose(observe(candidates=candidates))[0] == Action("ffn-50", 256)


def test_a_deadline_is_kept_by_the_least_cut_that_does():
    assert RulePolicy().choose(observe(deadline=3.5)) == (BASE, Reason.BASE_FITS)
    assert RulePolicy().choose(observe(deadline=2.8)) == (Action("ffn-87.5"), Reason.DEADLINE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"hot": True}, Reason.THERMAL), ({"save_energy": True}, Reason.ENERGY)],
)
def test_heat_and_thrift_cut_as_a_low_battery_does(change, reason):
    assert RulePolicy().choose(replace(observe(), **change)) == (Action("depth-24"), reason)
    assert RulePolicy().choose(replace(observe(), hot=False)) == (BASE, Reason.BASE_FITS)


READERS = [
    (Action("base"), 0.0, 1.0, 0.9, True),
    (Action("base", None, "read-70"), 0.03, 0.75, 0.6, True),
    (Action("base", None, "read-40"), 0.02, 0.5, 0.3, False),  # loses less, but not on tasks
    (Action("mix-80"), 0.8, 0.8, 0.7, False),
]


def with_readers(**changes):
    return observe(
        candidates=[
            Candidate(action, loss, cost, ttft, 0.02, None, 1.0, keeps)
            for action, loss, cost, ttft, keeps in READERS
        ],
        **changes,
    )


@pytest.mark.parametrize(
    ("seen", "action", "reason"),
    [
        ({}, Action("base"), Reason.BASE_FITS),
        ({"ttft": 0.7}, Action("base", None, "read-70"), Reason.TTFT),
        ({"ttft": 0.5}, Action("base", None, "read-40"), Reason.TTFT),
        ({"ttft": 0.1}, Action("base"), Reason.LEAST_BAD),
        ({"wait": 0.25, "demand": 1.2}, Action("base", None, "read-70"), Reason.QUEUE),
        ({"wait": 0.25, "demand": 1.2, "rank": 0.2}, Action("base"), Reason.BASE_FITS),
        ({"wait": 0.25, "demand": 1.9}, Action("base", None, "read-40"), Reason.QUEUE),
        ({"battery": 0.2}, Action("base", None, "read-70"), Reason.BATTERY),
    ],
)
def test_what_keeps_tasks_goes_before_what_loses_less(seen, action, reason):
    assert RulePolicy().choose(with_readers(**seen)) == (action, reason)


def test_a_variant_that_stays_reads_as_the_policy_wants():
    """At a queue the policy wants mix-80; the base, which dwells, reads by its reader instead."""
    wanted = Action("mix-80", None, "read-40")
    cheap = Candidate(wanted, 0.82, 0.4, 0.3, 0.02, keeps_tasks=False)
    seen = with_readers(wait=0.25, demand=2.4)
    seen = replace(seen, candidates=(*seen.candidates, cheap), held="base", held_seconds=0.5)
    assert choose_with_hysteresis(seen, RulePolicy(), 0.0) == (wanted, Reason.QUEUE)
    kept = choose_with_hysteresis(seen, RulePolicy(), 1.0)
    assert kept == (Action("base", None, "read-40"), Reason.DWELL)
    held = replace(with_readers(ttft=0.7), held="base", held_seconds=0.0)
    assert choose_with_hysteresis(held, RulePolicy(), 1.0)[1] is Reason.TTFT, "readers do not dwell"
    without = replace(seen, candidates=(*seen.candidates[:2], cheap))
    assert choose_with_hysteresis(without, RulePolicy(), 1.0) == (Action("base"), Reason.DWELL)


def test_static_takes_a_variant_with_its_reader():
    assert StaticPolicy("base+read-40").choose(with_readers())[0] == Action("base", None, "read-40")


def test_a_log_from_before_there_were_readers_is_read():
    seen = observe()
    record = json.loads(json.dumps(asdict(seen)))
    for candidate in record["candidates"]:
        del candidate["keeps_tasks"], candidate["action"]["reader"]
    assert read_observation(record) == seen
