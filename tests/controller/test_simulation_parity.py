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
from controller.observer import Observer
from policies import ExploringPolicy, Objectives, Observation, RulePolicy
from policies.features import observation_vector, open_choices
from policies.hysteresis import choose_with_hysteresis
from policies.observation import REFUSED
from policies.simulation.engine import EngineLimits
from policies.simulation.rates import Rates
from policies.simulation.server import DWELL_SECONDS, Scenario, SimulatedServer
from policies.simulation.traffic import at_load, synthetic
from pruners.variant import BASE as BASE_NAME
from pruners.variant import width_spec
from telemetry import Snapshot
from tests.support.paper import profile
from tests.support.step_times import BASE, SHAPE, fitted_model

NAMES = (BASE_NAME, "half", "tenth")
SPECS = {
    name: replace(spec, name=name)
    for name, spec in zip(
        NAMES, (BASE, width_spec(SHAPE, 0.5), width_spec(SHAPE, 0.25)), strict=True
    )
}
"""Each nested in the one before, as the profile's variants are."""
LIMITS = EngineLimits(max_running=8, step_tokens=128)
REQUESTS = 240
COMPARED = ("wait", "ttft", "tpot", "total", "cost")


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


def status_of(server: SimulatedServer) -> EngineStatus:
    """Return the simulated engine's state as the engine would report it."""
    engine, specs = server.engine, list(SPECS.values())

    def status(request, running: bool, written: int, read: int) -> SequenceStatus:
        return SequenceStatus(
            specs[request.action], running, request.prompt - read, request.output,
            request.output - written, read + written, request.cached,
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


def observer_of(server: SimulatedServer) -> Observer:
    """Return an observer of the simulated engine and its clock, with estimators of its own.

    What is learned from answers, waits and choices of variants is shared: they are the simulated
    server's.
    """
    table = server.profile
    catalogue = Catalogue(
        SPECS,
        tuple(table.kv_loss),
        dict(zip(NAMES[1:], table.prompts.predicted[0, 1:].tolist(), strict=True)),
        dict(table.kv_loss),
    )
    sources = StatusSources(
        lambda: status_of(server), lambda: Snapshot(taken_at=0.0), lambda: server.engine.clock
    )
    observer = Observer(catalogue, MODEL, sources, ControllerSettings(server.objectives), None)
    observer.estimators.answer_length = server.estimators.answer_length
    observer.estimators.wait_bias = server.estimators.wait_bias
    observer.estimators.dwell = server.estimators.dwell
    return observer


def situations(
    load: float, objectives: Objectives, seed: int
) -> Iterator[tuple[SimulatedServer, Observation, Observation]]:
    """Yield what both observe of requests, once answers have been observed."""
    arrivals = at_load(synthetic(REQUESTS, seed), load, RATES, LIMITS.max_running)
    rows = np.random.default_rng(seed).integers(0, 100, REQUESTS).tolist()
    scenario = Scenario(objectives, LIMITS, seed=seed)
    server = SimulatedServer(profile(rates=RATES), arrivals, rows, scenario)
    observer, policy = observer_of(server), ExploringPolicy(RulePolicy(), 0.5)
    for number, arrival in enumerate(arrivals):
        server.engine.advance(arrival.at)  # so that both see the state at the arrival
        request = IncomingRequest(Analyzer()("words"), arrival.prompt, arrival.output)
        observed = observer.observe(request)
        assert server.arrive()
        simulated = server.observation()
        if number >= 60:
            yield server, simulated, observed
        action, reason = choose_with_hysteresis(simulated, policy, DWELL_SECONDS)
        server.estimators.dwell.observe(simulated, action.variant, reason)
        server.take(None if reason in REFUSED else NAMES.index(action.variant))


def label_values(observation, field: str) -> dict[str, float]:
    if field == "wait":
        return {"": observation.wait}
    return {c.action.label: getattr(c, field) for c in observation.candidates}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("load", [0.2, 0.9, 1.6])
def test_server_and_simulation_predict_alike(load, seed):
    objectives = Objectives(ttft=2.0, tpot=0.05, max_loss=0.5, firm=True)
    full = []
    for server, simulated, observed in situations(load, objectives, seed):
        engine = server.engine
        full.append(engine.running + len(engine.waiting) >= LIMITS.max_running)
        assert observed.objectives == simulated.objectives
        assert observed.rank == pytest.approx(simulated.rank, abs=0.06)
        if round(8 * observed.rank) == round(8 * simulated.rank):  # requests of one class
            assert observed.held == simulated.held
            assert observed.held_seconds == simulated.held_seconds
        assert observed.demand == pytest.approx(simulated.demand, rel=0.08)
        for field in ("loss", "blocked"):
            assert label_values(observed, field) == label_values(simulated, field)
        for field in COMPARED:
            assert label_values(observed, field) == pytest.approx(
                label_values(simulated, field), rel=0.06, abs=2e-3
            ), field
        known = replace(simulated, complexity=observed.complexity, hot=observed.hot)
        np.testing.assert_allclose(
            observation_vector(observed, NAMES), observation_vector(known, NAMES),
            rtol=0.06, atol=0.01,
        )  # fmt: skip
        np.testing.assert_array_equal(
            open_choices(observed, NAMES)[:-1], open_choices(simulated, NAMES)[:-1]
        )
    assert not all(full) if load < 0.5 else any(full), "the queue is as the load says"
