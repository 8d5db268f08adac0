"""`train-policy`: from a profile and traffic to a policy, its report and the verdict on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from policies import LearnedPolicy, Objectives, Policy
from policies.bundle import Bundle, Kind, load_policy
from policies.simulation.engine import Limits
from policies.simulation.environment import Episodes
from policies.simulation.host import BATTERY, HOT, MAINS
from policies.simulation.profile import Profile
from policies.simulation.rewards import Reward
from policies.simulation.traffic import Arrival, read_trace, shortened, synthetic
from policies.training.report import write_report
from policies.training.train import BLIND, Plan, split, train
from policies.training.trial import Trial, interval, run_all, summary, verdict
from pruners.errors import UserError

_PROMPT, _OUTPUT = 80, 60  # medians that a trace's lengths are scaled to
_STATICS = 4  # policies that are tried beside every static one
_LEAST = 5


class TrainingError(UserError):
    """Too little to learn from. One clear line."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """What to train with and on. `samples` prompts of the profile at most; answers of at most
    `longest` tokens; `trace` None: drawn arrivals. What comes of `seeds` trainings is compared;
    the first one's policy is kept."""

    plan: Plan = field(default_factory=Plan)
    samples: int | None = None
    longest: int = 400
    trace: Path | None = None
    requests: int = 6000
    ablations: bool = True
    seeds: int = 3


def train_policy(
    profile: Profile, out: Path, lesson: Lesson, checkpoint: Path, progress: Progress
) -> dict[str, Any]:
    """Trains, tries the policy on held-out traffic and prompts, and writes bundle and report.

    An interrupted call goes on from `checkpoint`. Raises `TrafficError`, `TrainingError` or
    `CheckpointError`.
    """
    plan = lesson.plan
    (traffic, later), (learned, held) = _traffic(lesson), _prompts(profile, lesson)
    trained: dict[str, Policy] = {}
    plans: dict[str, Plan] = {plan.kind: plan}
    again = {f"{plan.kind} seed {s}": s for s in range(plan.seed + 1, plan.seed + lesson.seeds)}
    plans |= {name: replace(plan, seed=seed) for name, seed in again.items()}
    blind = {f"{plan.kind} without {what}": what for what in BLIND if lesson.ablations}
    plans |= {name: replace(plan, blind=what) for name, what in blind.items()}
    rewards: dict[str, list[float]] = {}
    checkpoints = [
        checkpoint.with_name(f"{checkpoint.stem}-{number}{checkpoint.suffix}")
        for number in range(len(plans))
    ]
    for number, (name, one) in enumerate(plans.items()):
        task = progress.add_task(f"Training {name}", total=one.episodes)
        layers, rewards[name] = train(
            profile, traffic, learned, one, checkpoints[number], partial(progress.advance, task)
        )
        trained[name] = LearnedPolicy(plan.kind, profile.variants, layers)
        if number == 0:
            # Kept at once: what follows only judges it.
            Bundle(plan.kind, profile.fingerprint, profile.variants, layers, False, {}).save(out)
    found, runs = _tried(profile, later, held, lesson, trained, progress)
    found["verdict"] = verdict(runs, plan.kind, list(again))
    found["ablations"] = {
        what: interval(runs[name], runs[plan.kind]) for name, what in blind.items()
    }
    write_report(out, profile, found, runs, plan.kind, rewards[plan.kind])
    kept = trained[plan.kind]
    assert isinstance(kept, LearnedPolicy)
    Bundle(
        plan.kind, profile.fingerprint, profile.variants, kept.layers,
        found["verdict"]["promoted"], found,
    ).save(out)  # fmt: skip
    for done in checkpoints:
        done.unlink()
    return found


def try_again(profile: Profile, out: Path, lesson: Lesson, progress: Progress) -> dict[str, Any]:
    """Tries the policy in `out` again, without training, and writes its report anew.

    Raises `PolicyError` if there is none for this profile's model and variants.
    """
    policy = load_policy(out, profile.fingerprint, profile.variants, force=True)
    (_, later), (_, held) = _traffic(lesson), _prompts(profile, lesson)
    found, runs = _tried(profile, later, held, lesson, {policy.name: policy}, progress)
    write_report(out, profile, found, runs, policy.name, [])
    return found


def _tried(
    profile: Profile,
    traffic: Sequence[Arrival],
    prompts: np.ndarray,
    lesson: Lesson,
    trained: dict[str, Policy],
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    drawn = lesson.plan.drawn
    trial = Trial(
        profile,
        traffic,
        prompts,
        lesson.plan.reward,
        drawn.objectives[0],
        drawn.limits,
        drawn.loads,
    )
    total = len(profile.variants) + _STATICS + len(trained)
    task = progress.add_task("Trying policies", total=total)
    runs = run_all(trial, trained, lambda: progress.advance(task))
    name = next(iter(trained))
    found = {
        **summary(trial, runs),
        "verdict": verdict(runs, name),
        "about": (
            f"{len(trial.cases())} runs a policy on held-out traffic and {len(prompts)} held-out "
            f"prompts, on mains power, on {profile.machine['processor']}; "
            f"reward '{lesson.plan.reward.name}', a lost request is worth "
            f"{lesson.plan.reward.lost:g}, seed {lesson.plan.seed}"
        ),
    }
    return found, runs


def _traffic(lesson: Lesson) -> tuple[Sequence[Arrival], Sequence[Arrival]]:
    """The first two thirds to learn from, the rest to test with."""
    if lesson.trace is None:
        arrivals = synthetic(lesson.requests, lesson.plan.seed)
    else:
        arrivals = shortened(read_trace(lesson.trace, lesson.requests), _PROMPT, _OUTPUT)
    arrivals = [a._replace(output=min(a.output, lesson.longest)) for a in arrivals]
    cut = len(arrivals) * 2 // 3
    return arrivals[:cut], arrivals[cut:]


def _prompts(profile: Profile, lesson: Lesson) -> tuple[np.ndarray, np.ndarray]:
    learned, held = split(profile.prompts.names[: lesson.samples])
    if min(len(learned), len(held)) < _LEAST:
        raise TrainingError(
            f"{len(learned)} prompts to learn from and {len(held)} to test with; "
            f"{_LEAST} of each are needed"
        )
    return learned, held


def plan_of(
    kind: Kind,
    episodes: int,
    reward: Reward,
    ttft: float,
    seed: int,
    limits: Limits,
) -> Plan:
    """A plan from a command's options."""
    # On every host that a server may meet, so that no reading is new to the policy then.
    hosts = (MAINS, BATTERY, HOT)
    drawn = Episodes(objectives=(Objectives(ttft=ttft, firm=True),), hosts=hosts, limits=limits)
    return Plan(kind, episodes, reward, drawn, seed=seed)
