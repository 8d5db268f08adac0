"""The controller and the simulated server predict the same for the same situation.

A simulated server runs into some state; the same state is shown to the controller as the status of
an engine whose step times follow the profile's rates. Estimators, features and candidates must
agree. Step times do not agree exactly: the controller's forecast counts one sampled token in a step
that reads prompts, rounds chunks of prompts up, and spreads the streaming of weights over a
prompt's tokens.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from controller import (
    Analyzer,
    Catalogue,
    ControllerSettings,
    EngineStatus,
    IncomingRequest,
    SequenceStatus,
    StatusSources,
    StepTimeModel,
)
from controller.engine_status import shallow_part
from controller.observer import Observer
from controller.reading import ServedReader
from policies import ExploringPolicy, Objectives, Observation, RulePolicy
from policies.features import observation_vector, open_choices
from policies.hysteresis import choose_with_hysteresis
from policies.observation import REFUSED, Reason
from policies.simulation.choices import choice_labels
from policies.simulation.deciding import DWELL_SECONDS
from policies.simulation.engine import EngineLimits
from policies.simulation.profile import Profile
from policies.simulation.rates import Rates
from policies.simulation.reader_profile import ReaderProfile
from policies.simulation.scenario import Scenario
from policies.simulation.server import SimulatedServer
from policies.simulation.traffic import at_load, synthetic
from pruners.kv.base import SINK_TOKENS
from pruners.reading.reader import PromptReader
from pruners.variant import BASE as BASE_NAME
from pruners.variant import width_spec
from telemetry import Snapshot
from tests.support.paper import profile
from tests.support.step_times import BASE, SHAPE, fitted_model

NUMBERS = (BASE_NAME, "half", "tenth")
SPECS = {
    name: replace(spec, name=name)
    for name, spec in zip(
        NUMBERS, (BASE, width_spec(SHAPE, 0.5), width_spec(SHAPE, 0.25)), strict=True
    )
}
"""Each nested in the one before, as the profile's variants are."""
LIMITS = EngineLimits(max_running=8, step_tokens=128)
REQUESTS = 240
COMPARED = ("wait", "queued", "ttft", "tpot", "total", "cost")


def rates_of(model: StepTimeModel) -> Rates:
    """Return the rates that describe the model's steps of one variant exactly."""
    stream, row, prompt, cached = [], [], [], []
    for spec in SPECS.values():
        one, two = (model.seconds([(spec, n, 0)], n) for n in (1, 2))
        row.append(two - one)
        stream.append(one - row[-1])
        prompt.append(model.seconds([(spec, 2, 0)], 1) - one)
        cached.append(model.per_cached(spec))
    return Rates(tuple(stream), tuple(row), tuple(prompt), tuple(cached))


MODEL = fitted_model()
RATES = rates_of(MODEL)
READERS = tuple(PromptReader(f"read-{depth}", depth, last=16) for depth in (6, 3))
IN_FULL = SINK_TOKENS + READERS[0].last
"""Tokens of every prompt that all readers read in full."""
BY_LENGTH = {"read-6": {60: 0.02, 1000: 0.05}, "read-3": {60: 0.2, 1000: 0.3}}
PAIRS, KEEP_TASKS = (("half", "read-6"),), ("base", "base+read-6")


def reader_profile(reader: PromptReader) -> ReaderProfile:
    """Return the profile of a reader whose tokens take as long as the model says."""
    lower = shallow_part(BASE, reader.depth)
    shallow = MODEL.seconds([(lower, 2, 0)], 1) - MODEL.seconds([(lower, 1, 0)], 1)
    rate = shallow / RATES.prompt[0]
    seconds = {tokens: rate + (1 - rate) * IN_FULL / tokens for tokens in (128, 512, 1024)}
    return ReaderProfile(reader.name, seconds, BY_LENGTH[reader.name], {})


def simulated_profile(readers: bool) -> Profile:
    """Return the profile of the three variants, with readers if they are wanted."""
    made = profile(rates=RATES)
    if not readers:
        return made
    found = tuple(map(reader_profile, READERS))
    return replace(made, readers=found, pairs=PAIRS, keep_tasks=KEEP_TASKS)


def status_of(server: SimulatedServer) -> EngineStatus:
    """Return the simulated engine's state as the engine would report it."""
    engine, specs = server.engine, list(SPECS.values())

    def status(request, running: bool, written: int, read: int) -> SequenceStatus:
        reader = server.choices[server._taken[request.index]].action.reader
        depth = next((one.depth for one in READERS if one.name == reader), 0)
        full_left = max(0, SINK_TOKENS - read) + IN_FULL - SINK_TOKENS
        shallow_left = max(0, request.prompt - read - full_left) if depth else 0
        return SequenceStatus(
            specs[request.action], running, request.prompt - read, request.output,
            request.output - written, read + written, request.cached, shallow_left, depth,
        )  # fmt: skip

    sequences = []
    for request in engine.decoding:
        written = request.output - (request.last_step - engine.steps_done)
        sequences.append(status(request, True, written, request.prompt))
    for request in engine.prefilling:
        sequences.append(status(request, True, 0, request.prompt - request.prompt_left))
    sequences += [status(request, False, 0, 0) for request in engine.waiting]
    limits = server.limits
    return EngineStatus(
        tuple(sequences), limits.max_running, limits.step_tokens, 0, limits.kv_tokens
    )


def observer_of(server: SimulatedServer) -> tuple[Observer, Catalogue]:
    """Return an observer of the simulated engine and its clock, with estimators of its own.

    What is learned from answers, waits and choices of variants is shared: they are the simulated
    server's.
    """
    table = server.profile
    catalogue = Catalogue(
        SPECS,
        tuple(table.kv_loss),
        dict(zip(NUMBERS[1:], table.prompts.predicted[0, 1:].tolist(), strict=True)),
        dict(table.kv_loss),
        {
            one.name: ServedReader(one, 1.0, tuple(BY_LENGTH[one.name].items()))
            for one in READERS[: len(table.readers)]
        },
        table.pairs,
        frozenset(table.keep_tasks),
    )
    sources = StatusSources(
        lambda: status_of(server), lambda: Snapshot(taken_at=0.0), lambda: server.engine.clock
    )
    observer = Observer(catalogue, MODEL, sources, ControllerSettings(server.objectives), None)
    observer.estimators.answer_length = server.estimators.answer_length
    observer.estimators.wait_bias = server.estimators.wait_bias
    observer.estimators.dwell, observer.started = server.estimators.dwell, server.started
    return observer, catalogue


def situations(
    load: float, objectives: Objectives, seed: int, readers: bool
) -> Iterator[tuple[SimulatedServer, Observation, Observation]]:
    """Yield what both observe of requests, once answers have been observed."""
    arrivals = at_load(synthetic(REQUESTS, seed), load, RATES, LIMITS.max_running)
    rows = np.random.default_rng(seed).integers(0, 100, REQUESTS).tolist()
    scenario = Scenario(objectives, LIMITS, seed=seed)
    server = SimulatedServer(simulated_profile(readers), arrivals, rows, scenario)
    observer, catalogue = observer_of(server)
    policy = ExploringPolicy(RulePolicy(), 0.5)
    first: dict[int, Observation] = {}
    while server.arrive():
        arrival, simulated = arrivals[server.current], server.observation()
        full_from = catalogue.full_from([5] * arrival.prompt)
        request = IncomingRequest(
            Analyzer()("words"), arrival.prompt, arrival.output, full_from=full_from
        )
        if server.starting:
            waited, before = server.engine.clock - arrival.at, first[server.current]
            observed = observer.observe_start(request, before, status_of(server), waited)
        else:
            observed = first[server.current] = observer.observe(request)
        if server.current >= 60:
            yield server, simulated, observed
        action, reason = choose_with_hysteresis(simulated, policy, DWELL_SECONDS)
        if server.starting:
            reason = Reason.LEAST_BAD if reason in REFUSED else reason
        server.dwell.observe(simulated, action.variant, reason)
        server.take(None if reason in REFUSED else server.numbers[action.choice])


def label_values(observation, field: str) -> dict[str, float]:
    if field in ("wait", "queued"):
        return {"": getattr(observation, field) or 0.0}
    return {c.action.label: getattr(c, field) for c in observation.candidates}


@pytest.mark.slow
@pytest.mark.parametrize("readers", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("load", [0.2, 0.9, 1.6])
def test_server_and_simulation_predict_alike(load, seed, readers):
    objectives = Objectives(ttft=2.0, tpot=0.05, max_loss=0.5, firm=True)
    full, starting = [], []
    for server, simulated, observed in situations(load, objectives, seed, readers):
        engine, names = server.engine, choice_labels(server.choices)
        assert len(names) == 6 if readers else 3
        full.append(engine.running + len(engine.waiting) >= LIMITS.max_running)
        starting.append(server.starting)
        assert observed.objectives == simulated.objectives
        assert (observed.queued is None) == (simulated.queued is None) == (not server.starting)
        assert observed.rank == pytest.approx(simulated.rank, abs=0.06)
        if round(8 * observed.rank) == round(8 * simulated.rank):  # requests of one class
            assert observed.held == simulated.held
            assert observed.held_seconds == simulated.held_seconds
        assert observed.demand == pytest.approx(simulated.demand, rel=0.08)
        for field in ("loss", "blocked", "keeps_tasks"):
            assert label_values(observed, field) == label_values(simulated, field)
        for field in COMPARED:
            assert label_values(observed, field) == pytest.approx(
                label_values(simulated, field), rel=0.08, abs=2e-3
            ), field
        known = replace(simulated, complexity=observed.complexity, hot=observed.hot)
        np.testing.assert_allclose(
            observation_vector(observed, names), observation_vector(known, names),
            rtol=0.08, atol=0.01,
        )  # fmt: skip
        np.testing.assert_array_equal(
            open_choices(observed, names)[:-1], open_choices(simulated, names)[:-1]
        )
    assert not all(full) if load < 0.5 else any(full), "the queue is as the load says"
    assert any(starting) == any(full), "only a queue puts the reading off"
    assert not all(starting)
