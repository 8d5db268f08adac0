"""The two modes of `train-policy`, by its options: everything is checked before work begins."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policies.bundle import load_bundle, load_policy
from policies.simulation.profile import Profile, load_profile
from policies.training.checkpoint import CheckpointError
from pruners.data.corpus import Corpus, read_corpus
from pruners.support.files import check_folder
from pruners.support.progress import progress_bars
from server.engine.config import ModelConfig
from server.engine.loading.artefact_lookup import declared_variants, shipped_artefact
from server.engine.loading.source import model_name
from server.jobs.policy_training import (
    POLICY,
    TEST,
    check_checkpoints,
    check_given,
    course_of,
    train_policy,
    try_again,
)
from server.jobs.profile import ProfileConfig, check_profile, corpus_hash, make_profile
from server.jobs.training_spec import Lesson, LessonError, Note

_PROMPTS = 500  # of a new profile, unless said otherwise
_ANSWER = 48  # tokens, at most
Options = Mapping[str, Any]
"""Of `train-policy`, by their names."""


def train(options: Options, given: set[str]) -> tuple[dict[str, Any], Path]:
    """Train as the options say, of which `given` were not left out; return verdict and report."""
    out: Path = options["out"]
    if "results" in given:
        raise LessonError("--results is of --mode test; a training's report goes to --out")
    check_folder(out, POLICY)
    lesson = Lesson.told(options)
    lesson.traffic()
    corpus = _corpus(options)
    folder = options["checkpoint"]
    if folder is not None:
        check_given(folder)
    profile = _profile(options, given, out, lesson, corpus)
    if lesson.train_samples is not None and lesson.train_samples > profile.origin.limit:
        raise LessonError(
            f"--train-samples {lesson.train_samples}: the profile was made with at most "
            f"{profile.origin.limit} prompts"
        )
    course, place = course_of(profile, lesson), folder or out / "checkpoint"
    if not check_checkpoints(profile, course, place) and folder is not None:
        raise CheckpointError(
            f"{folder} holds no checkpoint of these trainings ({', '.join(course.plans)}); leave "
            "--checkpoint out to start anew"
        )
    with progress_bars() as progress:
        found = train_policy(profile, out, lesson, course, place, progress)
    return found["verdict"], out / "report.md"


def test(options: Options, given: set[str]) -> tuple[dict[str, Any], Path]:
    """Try a policy again with what it was trained with; return verdict and report.

    With `--prompts` it is tried on those, by a profile of their own.
    """
    out: Path = options["out"]
    note = Note.read(load_bundle(out), out)
    lesson = note.lesson.contradicted(options, given)
    note = note.model_copy(update={"lesson": lesson})
    if "checkpoint" in given:
        raise LessonError("--checkpoint is of trainings; leave it out with --mode test")
    results: Path = options["results"] or out / "test"
    check_folder(results, TEST)
    lesson.traffic()
    corpus = _corpus(options)
    if corpus is None:
        profile = _trained_with(options, given, out, note)
    else:
        if corpus_hash(corpus) == note.profile.prompts_sha256:
            raise LessonError(
                f"{corpus.name} is what the policy was trained with: leave --prompts out to test "
                "it on those that were held out"
            )
        _check_artefact(options, out)
        profile = _profile(options, given, results, lesson, corpus)
    with progress_bars() as progress:
        found = try_again(profile, out, note, results, progress)
    return found["verdict"], results / "report.md"


def _corpus(options: Options) -> Corpus | None:
    return None if options["prompts"] is None else read_corpus(options["prompts"])


def _profile(
    options: Options, given: set[str], root: Path, lesson: Lesson, corpus: Corpus | None
) -> Profile:
    """The profile that is there, if it is of what is asked for, or else a new one of `corpus`."""
    folder: Path = options["profile"] or root / "profile"
    if folder.exists():
        return _existing(options, given, folder, corpus)
    if corpus is None:
        raise LessonError(
            f"there is no profile {folder}: give --prompts, or --profile by `trimtab profile`"
        )
    model = ModelConfig(options["model"], options["artefact"])
    config = ProfileConfig(model, max_running=lesson.max_running)
    limit = _PROMPTS if lesson.train_samples is None else lesson.train_samples
    return make_profile(config, folder, corpus, limit, min(_ANSWER, lesson.max_new_tokens))


def _existing(options: Options, given: set[str], folder: Path, corpus: Corpus | None) -> Profile:
    found = load_profile(folder)
    asked = {name: options[name] for name in ("model", "artefact") if name in given}
    check_profile(found, folder, corpus, **asked)
    return found


def _trained_with(options: Options, given: set[str], out: Path, note: Note) -> Profile:
    folder: Path = options["profile"] or out / "profile"
    if not folder.exists():
        raise LessonError(
            f"there is no profile {folder}: give the one of the training (of "
            f"{note.profile.prompts}) with --profile, or other prompts with --prompts"
        )
    found = _existing(options, given, folder, None)
    if found.identity != note.profile.identity:
        raise LessonError(
            f"{folder} is not the profile that the policy was trained with (of "
            f"{note.profile.prompts}), or was timed again since: give that one with --profile, or "
            "other prompts with --prompts"
        )
    return found


def _check_artefact(options: Options, out: Path) -> None:
    """Raises `PolicyError` before a sweep if the policy is not of these variants."""
    folder = options["artefact"] or shipped_artefact(model_name(options["model"]))
    if folder is not None:
        load_policy(out, *declared_variants(folder), force=True)
