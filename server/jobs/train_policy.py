"""`trimtab train-policy`: trains a policy, or tests a trained one again.

Everything that can be wrong is checked before work begins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.bundle import TEXT, load_bundle, load_policy
from policies.simulation.profile import Profile, load_profile
from policies.training.checkpoint import CheckpointError
from pruners.data.corpus import Corpus, read_corpus
from pruners.support.files import FolderKind, check_folder
from pruners.support.progress import progress_bars
from server.engine.config import ModelConfig
from server.engine.loading.artefact_lookup import declared_choices, likely_artefact
from server.engine.loading.source import model_name
from server.jobs.profile import ProfileConfig, check_profile, corpus_hash, make_profile
from server.jobs.training_runs import (
    count_checkpoints,
    plan_trainings,
    retest_policy,
    train_policy,
)
from server.jobs.training_spec import TrainingRecord, TrainingSpec, TrainingSpecError

_PROMPTS = 500  # of a new profile, unless the options name a number
_MAX_ANSWER_TOKENS = 48
_UNFINISHED_PROFILE = ".profile-profile/identity.json"
_POLICY_FOLDER = FolderKind(
    "policy", (TEXT, "profile/profile.json", _UNFINISHED_PROFILE, "checkpoint/*.safetensors")
)
_TEST_FOLDER = FolderKind(
    "test of a policy",
    ("report.json", "profile/profile.json", _UNFINISHED_PROFILE),
    (
        "report.json", "report.md", "report.png", "profile/", "profile/profile.json",
        "profile/profile.safetensors", ".profile-profile/", ".profile-profile/*",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainPolicyOptions:
    """The options of the command by name, and the names of those that the user gave."""

    values: Mapping[str, Any]
    given: frozenset[str]

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401
        return self.values[name]

    def corpus(self) -> Corpus | None:
        """Read the prompts of `--prompts`, if it was given. Raises `SourceError`."""
        return None if self["prompts"] is None else read_corpus(self["prompts"])


def run_training(options: TrainPolicyOptions) -> tuple[dict[str, Any], Path]:
    """Train as the options say. Return the verdict and the path of the report."""
    out: Path = options["out"]
    if "results" in options.given:
        raise TrainingSpecError("--results is of --mode test; a training's report goes to --out")
    check_folder(out, _POLICY_FOLDER)
    spec = TrainingSpec.from_options(options.values)
    spec.traffic()  # raises if there is something wrong with it
    corpus = options.corpus()
    if options["checkpoint"] is not None:
        _check_checkpoint_folder(options["checkpoint"])
    profile = _open_profile(options, out, spec, corpus)
    if spec.train_samples is not None and spec.train_samples > profile.origin.limit:
        raise TrainingSpecError(
            f"--train-samples {spec.train_samples}: the profile was made with at most "
            f"{profile.origin.limit} prompts"
        )
    trainings = plan_trainings(profile, spec)
    folder = options["checkpoint"] or out / "checkpoint"
    if not count_checkpoints(profile, trainings, folder) and options["checkpoint"] is not None:
        raise CheckpointError(
            f"{folder} holds no checkpoint of these trainings ({', '.join(trainings.plans)}); "
            "leave --checkpoint out to start anew"
        )
    with progress_bars() as progress:
        report = train_policy(profile, trainings, folder, out, progress)
    return report["verdict"], out / "report.md"


def run_test(options: TrainPolicyOptions) -> tuple[dict[str, Any], Path]:
    """Test a policy again with what it was trained with. Return verdict and path of the report.

    With `--prompts` it is tested on those, for which a profile is made.
    """
    out: Path = options["out"]
    record = TrainingRecord.read(load_bundle(out), out)
    spec = record.spec.confirmed_by(options.values, options.given)
    record = record.model_copy(update={"spec": spec})
    if "checkpoint" in options.given:
        raise TrainingSpecError("--checkpoint is of trainings; leave it out with --mode test")
    results: Path = options["results"] or out / "test"
    check_folder(results, _TEST_FOLDER)
    spec.traffic()  # raises if there is something wrong with it
    corpus = options.corpus()
    if corpus is None:
        profile = _profile_of_training(options, out, record)
    else:
        if corpus_hash(corpus) == record.profile.prompts_sha256:
            raise TrainingSpecError(
                f"{corpus.name} is what the policy was trained with: leave --prompts out to test "
                "it on those that were held out"
            )
        _check_variants(options, out)
        profile = _open_profile(options, results, spec, corpus)
    with progress_bars() as progress:
        report = retest_policy(profile, out, record, results, progress)
    return report["verdict"], results / "report.md"


def _check_checkpoint_folder(folder: Path) -> None:
    """Raise `CheckpointError` if the value of `--checkpoint` is no folder of checkpoints."""
    parent = folder if folder.is_dir() else folder.parent
    if folder.exists() and (parent / TEXT).exists():
        raise CheckpointError(
            f"{folder} is a finished policy, no checkpoint: serve it with --policy {parent}, judge "
            "it with --mode test, or leave --checkpoint out to train anew"
        )
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file: name the folder that holds the checkpoints")
    if not folder.is_dir():
        raise CheckpointError(
            f"there is no checkpoint {folder} to go on from; leave --checkpoint out to start anew"
        )


def _open_profile(
    options: TrainPolicyOptions, root: Path, spec: TrainingSpec, corpus: Corpus | None
) -> Profile:
    """Return the existing profile if it fits the options, or make one of `corpus`."""
    folder: Path = options["profile"] or root / "profile"
    if folder.exists():
        return _existing_profile(options, folder, corpus)
    if corpus is None:
        raise TrainingSpecError(
            f"there is no profile {folder}: give --prompts, or --profile by `trimtab profile`"
        )
    model = ModelConfig(options["model"], options["artefact"])
    config = ProfileConfig(model, max_running=spec.max_running)
    limit = _PROMPTS if spec.train_samples is None else spec.train_samples
    return make_profile(config, folder, corpus, limit, min(_MAX_ANSWER_TOKENS, spec.max_new_tokens))


def _existing_profile(options: TrainPolicyOptions, folder: Path, corpus: Corpus | None) -> Profile:
    profile = load_profile(folder)
    given = {name: options[name] for name in ("model", "artefact") if name in options.given}
    check_profile(profile, folder, corpus, **given)
    return profile


def _profile_of_training(options: TrainPolicyOptions, out: Path, record: TrainingRecord) -> Profile:
    """Return the profile that the policy was trained on. Raises `TrainingSpecError`."""
    folder: Path = options["profile"] or out / "profile"
    if not folder.exists():
        raise TrainingSpecError(
            f"there is no profile {folder}: give the one of the training (of "
            f"{record.profile.prompts}) with --profile, or other prompts with --prompts"
        )
    profile = _existing_profile(options, folder, None)
    if profile.identity != record.profile.identity:
        raise TrainingSpecError(
            f"{folder} is not the profile that the policy was trained with (of "
            f"{record.profile.prompts}), or was timed again since: give that one with --profile, "
            "or other prompts with --prompts"
        )
    return profile


def _check_variants(options: TrainPolicyOptions, out: Path) -> None:
    """Raise `PolicyError` if the policy is of other variants, before a profile is made."""
    folder = options["artefact"] or likely_artefact(model_name(options["model"]))
    if folder is not None:
        load_policy(out, *declared_choices(folder), force=True)
