"""`train-policy`: from a profile and traffic to a policy, its report and the verdict on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from policies import LearnedPolicy, Policy
from policies.bundle import TEXT, PolicyBundle, load_policy
from policies.simulation.profile import Profile
from policies.simulation.traffic import Arrival
from policies.training.checkpoint import CheckpointError, load_checkpoint
from policies.training.evaluation import (
    PolicyEvaluation,
    decide_promotion,
    evaluate_policies,
    reward_interval,
    summarize,
)
from policies.training.report import write_report
from policies.training.train import FEATURE_GROUPS, TrainingPlan, identity_of, train
from pruners.support.files import FolderKind
from server.jobs.training_spec import LEAST, Lesson, LessonError, Note

_SWEEP = ".profile-profile/identity.json"  # of an interrupted one
POLICY = FolderKind("policy", (TEXT, "profile/profile.json", _SWEEP, "checkpoint/*.safetensors"))
TEST = FolderKind(
    "test of a policy",
    ("report.json", "profile/profile.json", _SWEEP),
    (
        "report.json", "report.md", "report.png", "profile/", "profile/profile.json",
        "profile/profile.safetensors", ".profile-profile/", ".profile-profile/*",
    ),
)  # fmt: skip
_STATICS = 4  # policies that are tried beside every static one
_SUFFIX = ".safetensors"


@dataclass(frozen=True, slots=True)
class Course:
    """All trainings of a lesson: plans by name, the policy's own first, and what they see."""

    plans: dict[str, TrainingPlan]
    again: tuple[str, ...]  # the same from other seeds
    blind: dict[str, str]  # names of ablations, and what they do not see
    traffic: Sequence[Arrival]
    later: Sequence[Arrival]
    learned: np.ndarray
    held: np.ndarray

    def checkpoint(self, folder: Path, name: str) -> Path:
        """The file of one training."""
        return folder / f"{name.replace(' ', '-')}{_SUFFIX}"


def course_of(profile: Profile, lesson: Lesson) -> Course:
    """Raises `TrafficError` or `LessonError`."""
    plan = lesson.plan()
    (traffic, later), (learned, held) = lesson.traffic(), lesson.prompts(profile)
    again = {f"{plan.kind} seed {s}": s for s in range(plan.seed + 1, plan.seed + lesson.seeds)}
    plans = {plan.kind: plan} | {name: replace(plan, seed=seed) for name, seed in again.items()}
    blind = {f"{plan.kind} without {what}": what for what in FEATURE_GROUPS if lesson.ablations}
    plans |= {name: replace(plan, blind=what) for name, what in blind.items()}
    return Course(plans, tuple(again), dict(blind), traffic, later, learned, held)


def check_checkpoints(profile: Profile, course: Course, folder: Path) -> int:
    """How many checkpoints of a course there are. Raises `CheckpointError` for others."""
    found = 0
    for name, plan in course.plans.items():
        identity = identity_of(profile, course.traffic, course.learned, plan)
        found += load_checkpoint(course.checkpoint(folder, name), identity) is not None
    return found


def check_given(folder: Path) -> None:
    """Raises `CheckpointError` for a `--checkpoint` that nothing can be gone on from."""
    over = folder if folder.is_dir() else folder.parent
    if folder.exists() and (over / TEXT).exists():
        raise CheckpointError(
            f"{folder} is a finished policy, no checkpoint: serve it with --policy {over}, judge "
            "it with --mode test, or leave --checkpoint out to train anew"
        )
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: name the folder that holds the checkpoints")
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint {folder} to go on from; leave --checkpoint out to start anew"
        )


def train_policy(
    profile: Profile, out: Path, lesson: Lesson, course: Course, folder: Path, progress: Progress
) -> dict[str, Any]:
    """Trains, tries the policy on held-out traffic and prompts, and writes bundle and report.

    An interrupted call goes on from the checkpoints in `folder`. Raises `CheckpointError`.
    """
    trained: dict[str, LearnedPolicy] = {}
    rewards: dict[str, list[float]] = {}
    for name, plan in course.plans.items():
        task = progress.add_task(f"Training {name}", total=plan.episodes)
        layers, rewards[name] = train(
            profile, course.traffic, course.learned, plan, course.checkpoint(folder, name),
            partial(progress.advance, task),
        )  # fmt: skip
        trained[name] = LearnedPolicy(plan.kind, profile.variants, layers)
    found, runs = _tried(profile, course.later, course.held, lesson, trained, progress)
    kind = lesson.kind
    found["verdict"] = decide_promotion(runs, kind, course.again)
    found["ablations"] = {
        what: reward_interval(runs[name], runs[kind]) for name, what in course.blind.items()
    }
    write_report(out, profile, found, runs, kind, rewards[kind])
    PolicyBundle(
        kind, profile.fingerprint, profile.variants, trained[kind].layers,
        found["verdict"]["promoted"], Note.of(lesson, profile).model_dump(), found,
    ).save(out)  # fmt: skip
    for name in course.plans:
        course.checkpoint(folder, name).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return found


def try_again(
    profile: Profile, out: Path, note: Note, results: Path, progress: Progress
) -> dict[str, Any]:
    """Tries the policy in `out` again as it was tried after training; the report goes to `results`.

    A profile that is not the one of the training must be of other prompts: those that were learned
    from are left out. Raises `PolicyError`, `TrafficError` or `LessonError`.
    """
    policy = load_policy(out, profile.fingerprint, profile.variants, force=True)
    _, later = note.lesson.traffic()
    rows = _held(profile, note)
    found, runs = _tried(profile, later, rows, note.lesson, {policy.name: policy}, progress)
    write_report(results, profile, found, runs, policy.name, [])
    return found


def _held(profile: Profile, note: Note) -> np.ndarray:
    """Rows of a profile that were not learned from."""
    if profile.identity == note.profile.identity:
        _, held = note.lesson.prompts(profile)
        return held
    learned, names = set(note.learned), profile.prompts.names
    rows = np.array([row for row, name in enumerate(names) if name not in learned], int)
    if len(rows) < LEAST:
        raise LessonError(
            f"{profile.origin.name} has {len(rows)} prompts that were not learned from; "
            f"{LEAST} are needed"
        )
    return rows


def _tried(
    profile: Profile,
    traffic: Sequence[Arrival],
    prompts: np.ndarray,
    lesson: Lesson,
    trained: Mapping[str, Policy],
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:
    plan = lesson.plan()
    drawn = plan.drawn
    trial = PolicyEvaluation(
        profile, traffic, prompts, plan.reward, drawn.objectives[0], drawn.limits, drawn.loads
    )
    total = len(profile.variants) + _STATICS + len(trained)
    task = progress.add_task("Trying policies", total=total)
    runs = evaluate_policies(trial, trained, lambda: progress.advance(task))
    name = next(iter(trained))
    arrivals = "drawn arrivals" if lesson.trace is None else lesson.trace.name
    found = {
        **summarize(trial, runs),
        "verdict": decide_promotion(runs, name),
        "about": (
            f"{len(trial.cases())} runs a policy on held-out traffic ({arrivals}, "
            f"{len(traffic)} requests) and {len(prompts)} of the {len(profile.prompts.names)} "
            f"prompts of {profile.origin.name}, none of them learned from, on mains power, on "
            f"{profile.machine['processor']}; reward '{lesson.reward}', a lost request is worth "
            f"{lesson.lost:g}, first token within {lesson.ttft_ms:g} ms, "
            f"{lesson.max_running} answers at once, seed {lesson.seed}"
        ),
    }
    return found, runs
