"""Trains policies on a profile and in simulated traffic, and compares them with other policies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from policies import LearnedPolicy, Policy
from policies.bundle import PolicyBundle, load_policy
from policies.features import FEATURE_GROUPS
from policies.simulation.choices import choice_labels, profile_choices
from policies.simulation.profile import Profile
from policies.simulation.traffic import Arrival
from policies.training.checkpoint import load_checkpoint
from policies.training.evaluation import (
    EvaluationRun,
    PolicyEvaluation,
    decide_promotion,
    evaluate_policies,
    reward_interval,
    summarize,
)
from policies.training.report import write_report
from policies.training.train import TrainingPlan, identity_of, train
from server.jobs.training_spec import (
    MIN_PROMPTS,
    TrainingRecord,
    TrainingSpec,
    TrainingSpecError,
)

_OTHER_POLICIES = 4  # that are compared besides the static ones and the trained ones


@dataclass(frozen=True, slots=True)
class PlannedTrainings:
    """All trainings of a specification, and the data that they use.

    `plans` are by name; the first is of the policy that is kept. `reseeded` names those that differ
    from it in their seed alone. `ablations` maps the names of those that see less to what they do
    not see. `training_rows` and `test_rows` are rows of the profile, `[prompts]` each.
    """

    spec: TrainingSpec
    plans: dict[str, TrainingPlan]
    reseeded: tuple[str, ...]
    ablations: dict[str, str]
    training_traffic: Sequence[Arrival]
    test_traffic: Sequence[Arrival]
    training_rows: np.ndarray
    test_rows: np.ndarray

    def checkpoint(self, folder: Path, name: str) -> Path:
        """Return the checkpoint file of the training called `name`."""
        return folder / f"{name.replace(' ', '-')}.safetensors"


def plan_trainings(profile: Profile, spec: TrainingSpec) -> PlannedTrainings:
    """Return the trainings that `spec` asks for. Raises `TrafficError` or `TrainingSpecError`."""
    plan = spec.plan()
    seeds = range(plan.seed + 1, plan.seed + spec.seeds)
    reseeded = {f"{plan.kind} seed {seed}": replace(plan, seed=seed) for seed in seeds}
    hidden = FEATURE_GROUPS if spec.ablations else ()
    ablations = {f"{plan.kind} without {group}": group for group in hidden}
    plans = {plan.kind: plan, **reseeded}
    plans |= {name: replace(plan, hidden_group=group) for name, group in ablations.items()}
    return PlannedTrainings(
        spec, plans, tuple(reseeded), dict(ablations), *spec.traffic(), *spec.prompts(profile)
    )


def count_checkpoints(profile: Profile, trainings: PlannedTrainings, folder: Path) -> int:
    """Return how many of the trainings have a checkpoint in `folder`.

    Raises `CheckpointError` if one of these files is of another training.
    """
    count = 0
    for name, plan in trainings.plans.items():
        identity = identity_of(profile, trainings.training_traffic, trainings.training_rows, plan)
        count += load_checkpoint(trainings.checkpoint(folder, name), identity) is not None
    return count


def train_policy(
    profile: Profile, trainings: PlannedTrainings, folder: Path, out: Path, progress: Progress
) -> dict[str, Any]:
    """Train, compare the policies on held-out traffic and prompts, and write bundle and report.

    An interrupted call goes on from the checkpoints in `folder`, which are deleted at the end.
    Return the content of the report. Raises `CheckpointError`.
    """
    spec, kind = trainings.spec, trainings.spec.kind
    trained, rewards = _train_all(profile, trainings, folder, progress)
    data = _TestData(profile, trainings.test_traffic, trainings.test_rows)
    report, runs = _compare_policies(data, spec, trained, progress)
    report["verdict"] = decide_promotion(runs, kind, trainings.reseeded)
    report["ablations"] = {
        group: reward_interval(runs[name], runs[kind])
        for name, group in trainings.ablations.items()
    }
    write_report(out, profile, report, runs, kind, rewards[kind])
    PolicyBundle(
        kind, profile.fingerprint, trained[kind].variants, trained[kind].layers,
        report["verdict"]["promoted"],
        TrainingRecord.of(spec, profile).model_dump(by_alias=True), report,
    ).save(out)  # fmt: skip
    for name in trainings.plans:
        trainings.checkpoint(folder, name).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return report


def retest_policy(
    profile: Profile, out: Path, record: TrainingRecord, results: Path, progress: Progress
) -> dict[str, Any]:
    """Test the policy in `out` again, as after its training, and write the report to `results`.

    A profile that is not the one of the training must be of other prompts: those that the policy
    learned from are left out. Return the content of the report. Raises `PolicyError`,
    `TrafficError` or `TrainingSpecError`.
    """
    names = choice_labels(profile_choices(profile))
    policy = load_policy(out, profile.fingerprint, names, force=True)
    _, traffic = record.spec.traffic()
    data = _TestData(profile, traffic, _rows_not_learned(profile, record))
    report, runs = _compare_policies(data, record.spec, {policy.name: policy}, progress)
    write_report(results, profile, report, runs, policy.name, [])
    return report


def _train_all(
    profile: Profile, trainings: PlannedTrainings, folder: Path, progress: Progress
) -> tuple[dict[str, LearnedPolicy], dict[str, list[float]]]:
    """Return the trained policies and the rewards of their episodes, by name."""
    trained: dict[str, LearnedPolicy] = {}
    rewards: dict[str, list[float]] = {}
    labels = choice_labels(profile_choices(profile))
    for name, plan in trainings.plans.items():
        task = progress.add_task(f"Training {name}", total=plan.episodes)
        layers, rewards[name] = train(
            profile, trainings.training_traffic, trainings.training_rows, plan,
            trainings.checkpoint(folder, name), partial(progress.advance, task),
        )  # fmt: skip
        trained[name] = LearnedPolicy(plan.kind, labels, layers)
    return trained, rewards


def _rows_not_learned(profile: Profile, record: TrainingRecord) -> np.ndarray:
    """Return the rows of a profile that the policy did not learn from, `[prompts]`."""
    if profile.identity == record.profile.identity:
        _, held_out = record.spec.prompts(profile)
        return held_out
    learned, names = set(record.learned), profile.prompts.names
    rows = np.array([row for row, name in enumerate(names) if name not in learned], int)
    if len(rows) < MIN_PROMPTS:
        raise TrainingSpecError(
            f"{profile.origin.name} has {len(rows)} prompts that were not learned from; "
            f"{MIN_PROMPTS} are needed"
        )
    return rows


@dataclass(frozen=True, slots=True)
class _TestData:
    """Traffic, and rows of a profile `[prompts]`, that no policy learned from."""

    profile: Profile
    traffic: Sequence[Arrival]
    rows: np.ndarray


def _compare_policies(
    data: _TestData, spec: TrainingSpec, trained: Mapping[str, Policy], progress: Progress
) -> tuple[dict[str, Any], dict[str, list[EvaluationRun]]]:
    """Return what the report says, and every run by policy. The first trained policy is judged."""
    profile, plan = data.profile, spec.plan()
    drawn = plan.episode_settings
    evaluation = PolicyEvaluation(
        profile, data.traffic, data.rows, plan.reward, drawn.objectives[0], drawn.limits,
        drawn.loads,
    )  # fmt: skip
    total = len(profile_choices(profile)) + _OTHER_POLICIES + len(trained)
    task = progress.add_task("Trying policies", total=total)
    runs = evaluate_policies(evaluation, trained, lambda: progress.advance(task))
    arrivals = "drawn arrivals" if spec.trace is None else spec.trace.name
    report = {
        **summarize(evaluation, runs),
        "verdict": decide_promotion(runs, next(iter(trained))),
        "about": (
            f"{len(evaluation.cases())} runs a policy on held-out traffic ({arrivals}, "
            f"{len(data.traffic)} requests) and {len(data.rows)} of the "
            f"{len(profile.prompts.names)} prompts of {profile.origin.name}, none of them learned "
            f"from, on mains power, on {profile.machine['processor']}; reward '{spec.reward}', a "
            f"lost request is worth {spec.lost:g}, first token within {spec.ttft_ms:g} ms, "
            f"{spec.max_running} answers at once, seed {spec.seed}"
        ),
    }
    return report, runs
