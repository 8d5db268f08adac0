"""Readers in the catalogue, in forecasts and in decisions."""

import numpy as np
import pytest
import torch

from controller import Analyzer, Catalogue, EngineStatus, IncomingRequest, SequenceStatus
from controller import RequestPreferences as Preferences
from controller.engine_status import shallow_part
from controller.forecast import Forecast
from controller.reading import IncomingPrompt, ServedChoice, ServedReader, make_choice
from policies import Action, Objectives, Reason
from policies.candidates import RequestTokens
from pruners.reading.reader import PromptReader
from pruners.variant import BASE as BASE_NAME
from tests.support.controlled_host import ControlledHost
from tests.support.step_times import BASE, BODY, HALF, SHAPE, fitted_model, measured_step

UP_TO_8 = PromptReader("read-70", 8)
IDLE = EngineStatus((), 4, 256, 0, 10_000)
WITH_NUMBERS = PromptReader("read-75", 6, last=3, numbers=True)


@pytest.fixture
def host():
    return ControlledHost()


def all_shallow(prompt: int, last: int = 16, first: int = 4) -> np.ndarray:
    """Return the full tokens from each position on, if only the first and the last are."""
    full = [i < first or i >= prompt - last for i in range(prompt)]
    return np.array([sum(full[i:]) for i in range(prompt + 1)])


def request(prompt: int, output: int = 50, reusable=None, **preferences) -> IncomingRequest:
    return IncomingRequest(
        Analyzer()("What is this?"), prompt, output, Preferences(**preferences), reusable or {},
        {"read-70": all_shallow(prompt), "read-40": all_shallow(prompt)},
    )  # fmt: skip


def catalogue(**changes) -> Catalogue:
    return Catalogue(
        **{
            "variants": {BASE_NAME: BASE, "ffn-50": HALF},
            "kv_budgets": (256, 512),
            "variant_loss": {"ffn-50": 1.5},
            "kv_loss": {512: 0.1},
            "readers": {"read-70": ServedReader(UP_TO_8, 0.03)},
            **changes,
        }
    )


def test_the_base_goes_with_all_readers_and_variants_with_those_that_are_paired():
    labels = [action.label for action in catalogue(pairs=(("ffn-50", "read-70"),)).actions()]
    assert labels == [
        "base", "base+kv-512", "base+kv-256",
        "base+read-70", "base+read-70+kv-512", "base+read-70+kv-256",
        "ffn-50", "ffn-50+kv-512", "ffn-50+kv-256",
        "ffn-50+read-70",
    ]  # fmt: skip


def test_what_is_read_in_full_is_counted_from_each_position_on():
    numbers = torch.zeros(100, dtype=torch.bool)
    numbers[7] = True
    served = {"read-75": ServedReader(WITH_NUMBERS)}
    # Four sinks, two shallow ones, three before a number, the number, two shallow ones, the end.
    prompt = [1, 2, 3, 4, 5, 6, 5, 5, 5, 7, 8, 9, 10, 11, 12]
    found = catalogue(readers=served, token_kinds=numbers).full_from(prompt)["read-75"]
    assert found.tolist() == [11, 10, 9, 8, 7, 7, 7, 6, 5, 4, 3, 3, 3, 2, 1, 0]
    incoming = IncomingPrompt(15, {("base", None): 6, ("base", "read-75"): 13}, {"read-75": found})
    deep, full = make_choice(BASE, WITH_NUMBERS), ServedChoice(BASE)
    assert (incoming.cached(deep), incoming.cached(full)) == (13, 6)
    assert incoming.left(deep, 6) == (7, 2)
    assert incoming.left(full, 6) == (9, 0)


def test_a_shallow_token_costs_the_layers_that_it_runs_through():
    lower = shallow_part(BASE, 8)
    assert lower.body_parameters(SHAPE) == BODY[BASE] * 8 // 12
    choices = [ServedChoice(BASE), make_choice(BASE, UP_TO_8)]
    forecast = Forecast(fitted_model().now, IDLE, lambda most: most)
    incoming = IncomingPrompt(256, {}, {"read-70": all_shallow(256)})
    tokens = RequestTokens(256, 1)
    base, read = forecast.by_choice(
        choices, tokens, incoming, forecast.work(BASE, tokens, 0)
    ).values()
    # The machine of the tests takes 4e-11 s a weight and token, and streams all weights once.
    saved = 4e-11 * 236 * BODY[BASE] / 3
    assert base.ttft - read.ttft == pytest.approx(saved, rel=0.02)
    assert (base.tpot, base.cost) == (read.tpot, pytest.approx(1.0))
    assert read.cost == pytest.approx(0.7, abs=0.03)
    again = IncomingPrompt(256, {("base", "read-70"): 200}, {"read-70": all_shallow(256)})
    later = forecast.by_choice(choices, tokens, again, 1.0)["base+read-70"]
    assert later.ttft_uncached == pytest.approx(read.ttft)
    assert base.ttft > read.ttft > later.ttft


def test_a_queue_of_shallow_prompts_is_read_sooner():
    def wait(**shallow) -> float:
        waiting = SequenceStatus(BASE, False, 600, 1, 1, 0, 700, **shallow)
        return Forecast(fitted_model().now, EngineStatus((waiting,), 4, 256, 0, 9999), float).wait

    model = fitted_model()
    rows = [(BASE, 7, 0), (shallow_part(BASE, 4), 193, 0)]
    assert wait(shallow_left=579, depth=4) == pytest.approx(3 * model.seconds(rows, 1))
    assert wait(shallow_left=579, depth=4) < 0.6 * wait()


def test_steps_with_shallow_rows_teach_the_rates_of_full_ones():
    """A host that became slower is noticed; shallow rows alone do not look like a faster one."""
    model, lower = fitted_model(), shallow_part(BASE, 6)
    whole = measured_step([(BASE, 256, 0)], 1)
    before = model.seconds(whole.rows, 1)
    half = whole.seconds - 4e-11 * 240 * BODY[BASE] / 2  # 240 of its tokens end halfway
    for _ in range(60):
        model.observe(type(whole)(half, ((BASE, 16, 0), (lower, 240, 0)), 1))
    assert model.seconds(whole.rows, 1) == pytest.approx(before, rel=0.02)


def test_losses_of_writer_reader_and_budget_add_up(host):
    observed = host.controller().observe(request(200))
    losses = {c.action.label: c.loss for c in observed.candidates}
    assert losses["base+read-70"] == pytest.approx(0.03)
    assert losses["base+read-70+kv-512"] == pytest.approx(0.03), "which evicts nothing"
    assert losses["base+read-40"] == pytest.approx(0.3), "by its length"
    assert losses["depth-9+read-40"] == pytest.approx(1.0)
    longer = host.controller().observe(request(900))
    losses = {c.action.label: c.loss for c in longer.candidates}
    assert losses["base+read-40"] == pytest.approx(0.1)
    assert losses["base+read-70+kv-512"] == pytest.approx(0.13)


@pytest.mark.parametrize(
    ("reusable", "share"),
    [
        ({}, 1.0),
        ({("base", "read-70"): 110}, 1.0),  # read by the reader before
        ({("base", None): 60, ("base", "read-70"): 110}, 1.0),
        ({("base", None): 110, ("base", "read-70"): 110}, 74 / 180),  # 200 less 4, 16 and 106
        ({("base", None): 190, ("base", "read-70"): 190}, 0.0),
        ({("half", None): 110}, 1.0),
    ],
)
def test_what_is_cached_in_full_loses_nothing(host, reusable, share):
    observed = host.controller().observe(request(200, reusable=reusable))
    losses = {c.action.label: c.loss for c in observed.candidates}
    assert losses["base+read-70"] == pytest.approx(0.03 * share)
    assert losses["base+read-70+kv-512"] == pytest.approx(0.03), "which uses no prefix"
    assert losses["depth-9+read-40"] == pytest.approx(1.0)


def test_an_unmeasured_reader_has_no_loss_and_without_counts_none_is_used(host):
    served = ServedReader(UP_TO_8)
    assert served.expected_loss(10) is None
    assert catalogue(readers={"read-70": served}).expected_losses().keys() == {"base", "ffn-50"}
    unknown = IncomingRequest(Analyzer()("What is this?"), 200, 50)
    assert all(c.action.reader is None for c in host.controller().observe(unknown).candidates)


def test_a_tight_first_token_reads_shallower_and_writes_with_the_base(host):
    controller = host.controller(ttft=None)
    times = {c.action.label: c.ttft for c in controller.observe(request(900)).candidates}
    for bound, action, reason in (
        (None, Action("base"), Reason.BASE_FITS),
        (1.01 * times["base"], Action("base"), Reason.BASE_FITS),
        (0.99 * times["base"], Action("base", None, "read-70"), Reason.TTFT),
        (0.99 * times["base+read-70"], Action("base", None, "read-40"), Reason.TTFT),
        (0.5 * times["base+read-40"], Action("base"), Reason.LEAST_BAD),
    ):
        decision = controller.decide(request(900, objectives=Objectives(ttft=bound)))
        assert (decision.action, decision.reason) == (action, reason), bound


def test_max_loss_bounds_the_sum(host):
    host.set_requests(4, 12)
    allowed = {
        c.action.label
        for c in host.controller()
        .observe(request(200, objectives=Objectives(max_loss=0.1)))
        .candidates
        if c.blocked is None
    }
    assert allowed == {"base", "base+kv-512", "base+read-70", "base+read-70+kv-512"}


def test_a_named_reader_leaves_the_rest_to_the_policy(host):
    controller = host.controller()
    shallow = controller.decide(request(200, reader="read-40"))
    assert shallow.action == Action("base", None, "read-40")
    assert shallow.reason is Reason.BASE_FITS
    seen = {c.action.label for c in shallow.observation.candidates}
    assert seen == {"base+read-40", "base+read-40+kv-512", "depth-9+read-40"}
    assert shallow.chosen.cost < 1, "over the base in full"
    in_full = controller.observe(request(200, reader="full"))
    assert {c.action.reader for c in in_full.candidates} == {None}


@pytest.mark.parametrize(
    ("preferences", "action"),
    [
        ({"variant": "ffn-50"}, Action("ffn-50")),
        ({"kv_budget": 300, "reader": "full"}, Action("base", 300)),
        ({"variant": "ffn-50", "reader": "read-70"}, Action("ffn-50", None, "read-70")),
        ({"kv_budget": 300, "reader": "read-40"}, Action("base", 300, "read-40")),
    ],
)
def test_a_named_writer_is_a_pin_and_reads_in_full_unless_told_otherwise(host, preferences, action):
    decision = host.controller().decide(request(200, **preferences))
    assert (decision.action, decision.reason) == (action, Reason.PINNED)


def test_what_answers_lose_in_production_counts_for_the_choice(host):
    controller = host.controller()
    for _ in range(30):
        controller.quality_guard.observe("base+read-70", 0.5)
    losses = {c.action.label: c.loss for c in controller.observe(request(200)).candidates}
    assert losses["base+read-70"] == pytest.approx(0.5)
    assert losses["base"] == 0.0
