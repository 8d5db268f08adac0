"""`train-policy`: hands the trainer a replay of traffic at this device's measured speed."""

import csv
import random
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.progress import Progress

from controller import Analyzer, Controller, Hints, StepModel
from controller.simulator import Arrival, Simulator
from policies import Action, Objectives, Policy, RulePolicy, RuleSettings, StaticPolicy
from policies.bundle import Bundle, actions_hash
from policies.train import HEADROOMS, Replay, train
from pruners.variant import BASE, VariantSpec
from server.app import build_runner, catalogue, load, step_model
from server.engine.load import LoadedModel
from server.engine.warmup import measure_steps
from server.settings import Settings, SettingsError
from telemetry import Snapshot

_LOADS = (0.5, 1.0, 1.5, 2.0)  # arrival rates, relative to what the base can serve


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to replay: gaps are relative, since the rate is scaled to the machine."""

    requests: tuple[Arrival, ...]
    source: str


def train_policy(settings: Settings, trace: Path | None, requests: int, seed: int) -> Bundle:
    """Measures this device, then trains on `requests` requests. Raises `SettingsError`."""
    traffic = synthetic(requests, seed) if trace is None else from_trace(trace, requests)
    model = load(settings)
    if len(model.variants) == 1:
        raise SettingsError(f"{model.name} has no variants to choose from; see `trimtab build`")
    runner = build_runner(model, settings, free_bytes=None)
    latency = step_model(model)
    smallest = min(model.variants.values(), key=lambda v: v.parameters(model.weights.shape))
    latency.fit(measure_steps(runner, model.tokenizer, [model.variants[BASE], smallest]))
    replay = _replay(model, settings, latency, traffic)
    with Progress() as progress:
        task = progress.add_task("Replaying traffic", total=len(HEADROOMS) + 3)
        trained = train(replay, seed, lambda: progress.advance(task))
    names = [str(action) for action in catalogue(model, settings).actions()]
    report = {**trained.report, "traffic": traffic.source, "loads": list(_LOADS)}
    return Bundle(
        model.fingerprint, actions_hash(names), trained.settings, trained.promoted, report
    )


def synthetic(requests: int, seed: int) -> Traffic:
    """Poisson arrivals with log-normal lengths, for when there is no trace."""
    chance, clock, made = random.Random(seed), 0.0, []
    for _ in range(requests):
        clock += chance.expovariate(1.0)
        prompt = min(1000, max(8, int(chance.lognormvariate(4.3, 0.8))))
        output = min(400, max(4, int(chance.lognormvariate(4.0, 0.7))))
        made.append(Arrival(clock, prompt, output))
    return Traffic(tuple(made), f"synthetic, seed {seed}")


def from_trace(path: Path, requests: int) -> Traffic:
    """A CSV with `TIMESTAMP`, `ContextTokens`, `GeneratedTokens`, as Azure publishes them.

    Lengths are scaled so that their medians are 80 and 60 tokens, within this model's reach.
    """
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            rows = [row for row, _ in zip(csv.DictReader(lines), range(requests), strict=False)]
        stamps = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        lengths = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in rows]
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: expected a CSV of TIMESTAMP,ContextTokens,GeneratedTokens ({error})"
        ) from error
    if len(rows) < 8:
        raise SettingsError(f"{path} holds {len(rows)} requests; at least 8 are needed")
    middle = len(rows) // 2
    prompt = 80 / max(1, sorted(p for p, _ in lengths)[middle])
    output = 60 / max(1, sorted(o for _, o in lengths)[middle])
    made = (
        Arrival(at - stamps[0], max(4, int(p * prompt)), max(2, int(o * output)))
        for at, (p, o) in zip(stamps, lengths, strict=True)
    )
    return Traffic(tuple(made), path.name)


def _replay(model: LoadedModel, settings: Settings, latency: StepModel, traffic: Traffic) -> Replay:
    """Scores of a policy over every load; the first two thirds of the traffic train."""
    cut = len(traffic.requests) * 2 // 3
    parts = {"train": traffic.requests[:cut], "test": traffic.requests[cut:]}
    ttft = (settings.ttft_ms or 2000.0) / 1e3
    actions = catalogue(model, settings)
    nothing = Analyzer()("")

    def replay(chosen: RuleSettings | None, split: str) -> list[float]:
        policy: Policy = StaticPolicy(BASE) if chosen is None else RulePolicy(chosen)
        scores: list[float] = []
        for load_factor in _LOADS:
            arrivals = _scaled(parts[split], load_factor, latency, model, settings)
            simulator = Simulator(latency, settings.max_running, settings.step_tokens, 2**20)
            controller = Controller(
                actions,
                latency,
                policy,
                simulator.load,
                _no_host,
                Objectives(ttft=ttft),
                clock=lambda it=simulator: it.clock,  # type: ignore[misc]
            )

            def decide(arrival: Arrival, by: Controller = controller) -> tuple[VariantSpec, float]:
                decision = by.decide(nothing, arrival.prompt, arrival.output, Hints())
                variant = decision.action.variant
                return model.variants[variant], actions.loss(Action(variant), 0) or 0.0

            outcomes = simulator.run(arrivals, decide, controller.answer_done)
            scores += [o.quality if o.ttft <= ttft else 0.0 for o in outcomes]
        return scores

    return replay


def _scaled(
    requests: tuple[Arrival, ...],
    load_factor: float,
    latency: StepModel,
    model: LoadedModel,
    settings: Settings,
) -> list[Arrival]:
    """The same requests at `load_factor` times the rate that a full batch of the base can serve."""
    base, rows = model.variants[BASE], settings.max_running
    step = latency.seconds([(base, rows)], rows, 0)
    prompt = latency.seconds([(base, 256)], 1, 0) / 256
    busy = sum(r.output * step / rows + r.prompt * prompt for r in requests)
    span = requests[-1].at - requests[0].at
    stretch = busy / load_factor / max(span, 1e-9)
    return [Arrival((r.at - requests[0].at) * stretch, r.prompt, r.output) for r in requests]


def _no_host() -> Snapshot:
    return Snapshot(taken_at=0.0)
