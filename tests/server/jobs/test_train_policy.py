"""What a policy was trained with is kept, used for its tests, and never silently another thing."""

import json
import shutil
from dataclasses import replace

import pytest

from policies.bundle import load_bundle
from policies.simulation.profile import Origin, load_profile
from policies.simulation.traffic import synthetic
from pruners.data.corpus import read_corpus
from server.jobs import train_policy as train_policy_job
from server.jobs import training_runs
from server.jobs.profile import corpus_hash
from tests.support.paper import profile
from tests.support.train_policy import KilledError, contents, killed, run
from tests.support.train_policy import train_policy_refused as refused

pytestmark = pytest.mark.slow

OPTIONS = (
    "--kind", "bandit", "--episodes", 10, "--seeds", 1, "--no-ablations", "--seed", 3,
    "--reward", "thesis", "--lost", 0, "--requests", 240, "--ttft-ms", 700, "--max-running", 4,
    "--train-samples", 60, "--max-new-tokens", 90,
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Prompts, a profile that was made of them, a trace, and a policy that learned from both."""
    root = tmp_path_factory.mktemp("workspace")
    (root / "prompts.txt").write_text("some prompts\n")
    (root / "others.txt").write_text("other prompts\n")
    origin = Origin("prompts.txt", corpus_hash(read_corpus(str(root / "prompts.txt"))), 100, 48)
    replace(profile(), origin=origin).save(root / "profile")
    rows = [
        json.dumps({"timestamp": 1e3 * at, "input_length": prompt, "output_length": output})
        for at, prompt, output in synthetic(240, 5)
    ]
    (root / "trace.jsonl").write_text("\n".join(rows))
    given = ("--profile", root / "profile", "--trace", root / "trace.jsonl")
    run("train-policy", "--out", root / "policy", *given, *OPTIONS)
    return root


@pytest.fixture
def workspace(root, tmp_path):
    """The same to play with; the trace lies where it was."""
    return shutil.copytree(root, tmp_path / "workspace")


def test_the_bundle_says_what_was_trained_with(root):
    noted = load_bundle(root / "policy").training
    lesson, told = noted["lesson"], ("reward", "lost", "seed", "requests", "train_samples")
    assert [lesson[name] for name in told] == ["thesis", 0.0, 3, 240, 60]
    assert (lesson["max_running"], lesson["ttft_ms"]) == (4, 700)
    assert (lesson["trace"]["name"], len(lesson["trace"]["sha256"])) == ("trace.jsonl", 64)
    assert noted["profile"]["identity"] == load_profile(root / "profile").identity
    assert noted["profile"]["prompts"] == "prompts.txt"
    names = load_profile(root / "profile").prompts.names[:60]
    assert sorted([*noted["learned"], *noted["held"]]) == sorted(names)
    assert all(int(name, 16) % 5 == 0 for name in noted["held"])
    assert not (root / "policy" / "checkpoint").exists()


def test_a_test_repeats_the_training_s_test_and_overwrites_nothing(workspace):
    out = workspace / "policy"
    before = contents(out)
    run("train-policy", "--mode", "test", "--out", out, "--profile", workspace / "profile")
    assert before.items() <= contents(out).items()
    assert sorted(p.name for p in (out / "test").iterdir()) == [
        "report.json", "report.md", "report.png",
    ]  # fmt: skip
    trained, tested = (json.loads((f / "report.json").read_text()) for f in (out, out / "test"))
    assert tested["policies"] == trained["policies"]
    assert tested["verdict"] == trained["verdict"]
    assert tested["about"] == trained["about"]
    assert "reward 'thesis', a lost request is worth 0," in tested["about"]
    run("train-policy", "--mode", "test", "--out", out, "--profile", workspace / "profile",
        "--trace", workspace / "trace.jsonl", *OPTIONS)  # fmt: skip
    assert len(list(out.rglob("*"))) == len(before) + 4, "equal options are no contradiction"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--reward", "constraint"), "--reward constraint: the policy was trained with thesis"),
        (("--lost", -0.1), "--lost -0.1: the policy was trained with 0.0"),
        (("--lost", -0.5), "--lost -0.5: the policy was trained with 0.0"),  # the default, given
        (("--seed", 0), "--seed 0: the policy was trained with 3"),
        (("--requests", 241), "--requests 241"),
        (("--train-samples", 61), "--train-samples 61"),
        (("--max-new-tokens", 91), "--max-new-tokens 91"),
        (("--ttft-ms", 701), "--ttft-ms 701"),
        (("--max-running", 5), "--max-running 5"),
        (("--lengths", "own"), "--lengths own: the policy was trained with prompts"),
        (("--kind", "dqn"), "--kind dqn"),
        (("--episodes", 20), "--episodes 20"),
        (("--seeds", 2), "--seeds 2"),
        (("--ablations",), "--ablations True"),
        (("--checkpoint", "x"), "--checkpoint is of trainings"),
        (("--prompts", "no-such.txt"), "no-such.txt"),
        (("--trace", "no-such.csv"), "cannot read the trace no-such.csv"),
        (("--model", "another"), "is of the model paper"),
        (("--profile", "nowhere"), "there is no profile nowhere"),
    ],
)
def test_what_contradicts_a_training_is_refused_by_name(root, options, says):
    before = contents(root)
    given = ("--mode", "test", "--out", root / "policy", "--profile", root / "profile")
    refused(says, *given, *options)
    assert contents(root) == before


def test_a_trace_may_have_moved_but_not_changed(workspace):
    out, trace = workspace / "policy", workspace / "moved.jsonl"
    (workspace / "trace.jsonl").rename(trace)
    body = json.loads((out / "policy.json").read_text())
    body["training"]["lesson"]["trace"]["path"] = str(workspace / "trace.jsonl")
    (out / "policy.json").write_text(json.dumps(body))
    given = ("--mode", "test", "--out", out, "--profile", workspace / "profile")
    refused("cannot read the trace", *given)
    trace.write_text(trace.read_text() + "\n")
    refused("--trace", *given, "--trace", trace)
    trace.write_text(trace.read_text()[:-1])
    elsewhere = workspace / "elsewhere"
    run("train-policy", *given, "--trace", trace, "--results", elsewhere)
    assert (elsewhere / "report.md").exists()
    assert not (out / "test").exists()
    body["training"]["lesson"].pop("lost")
    body["training"]["lesson"]["seeds"] = "many"
    (out / "policy.json").write_text(json.dumps(body))
    refused("what it was trained with is not whole (lesson.seeds)", *given)


def test_a_profile_that_is_not_the_training_s_is_refused(workspace):
    replace(profile(90), device="another").save(workspace / "timed")
    given = ("--mode", "test", "--out", workspace / "policy", "--profile", workspace / "timed")
    refused("is not the profile that the policy was trained with", *given)


def test_prompts_of_a_test_make_a_held_out_profile(workspace, monkeypatch):
    made = []

    def make_profile(settings, folder, corpus, limit, tokens):
        origin = Origin(corpus.name, corpus_hash(corpus), limit, tokens)
        # Half of its prompts were learned from, or held out; the others are new.
        names = tuple(f"{number:016x}" for number in range(50, 150))
        found = profile()
        found = replace(found, prompts=replace(found.prompts, names=names), origin=origin)
        found.save(folder)
        made.append((settings.max_running, limit, tokens))
        return load_profile(folder)

    tested_prompts = []

    class Watched(training_runs.PolicyEvaluation):
        def __init__(self, profile, traffic, prompts, *rest):
            tested_prompts.append([profile.prompts.names[row] for row in prompts])
            super().__init__(profile, traffic, prompts, *rest)

    monkeypatch.setattr(train_policy_job, "make_profile", make_profile)
    monkeypatch.setattr(train_policy_job, "_check_variants", lambda options, out: None)
    monkeypatch.setattr(training_runs, "PolicyEvaluation", Watched)
    out = workspace / "policy"
    given = ("--mode", "test", "--out", out)
    before = contents(out)
    refused("is what the policy was trained with", *given, "--prompts", workspace / "prompts.txt")
    assert not made
    run("train-policy", *given, "--prompts", workspace / "others.txt")
    assert made == [(4, 60, 48)]
    learned = set(load_bundle(out).training["learned"])
    assert tested_prompts[0] == [f"{n:016x}" for n in range(50, 150) if f"{n:016x}" not in learned]
    assert before.items() <= contents(out).items()
    about = json.loads((out / "test" / "report.json").read_text())["about"]
    assert (
        f"{len(tested_prompts[0])} of the 100 prompts of others.txt, none of them learned" in about
    )
    run("train-policy", *given, "--prompts", workspace / "others.txt")
    assert len(made) == 1, "the same prompts are not swept again"
    (workspace / "others.txt").write_text("yet others")
    refused("was made from others.txt", *given, "--prompts", workspace / "others.txt")


def test_a_held_out_profile_is_of_the_same_variants(workspace, varied_folders):
    model, artefact = varied_folders
    given = ("--mode", "test", "--out", workspace / "policy", "--model", model)
    refused("was trained for another model", *given, "--artefact", artefact,
            "--prompts", workspace / "others.txt")  # fmt: skip


@pytest.mark.parametrize("name", ["work", "policy", "profile"])
def test_results_replace_nothing_but_results(workspace, name):
    (workspace / "work").mkdir()
    (workspace / "work" / "report.json").write_text('{"schema": 1}')
    (workspace / "work" / "thesis.tex").write_text("mine")
    before = contents(workspace)
    refused(
        str(workspace / name), "--mode", "test", "--out", workspace / "policy",
        "--profile", workspace / "profile", "--results", workspace / name,
    )  # fmt: skip
    assert contents(workspace) == before


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--prompts", "no-such.txt"), "no-such.txt"),
        (("--trace", "no-such.csv"), "cannot read the trace no-such.csv"),
        (("--checkpoint", "no-such"), "there is no checkpoint no-such"),
        (("--results", "x"), "--results is of --mode test"),
        (("--lost", "nan"), "--lost: input should be a finite number"),
        (("--ttft-ms", "inf"), "--ttft-ms: input should be a finite number"),
        (("--episodes", 25), "--episodes: input should be a multiple of 10"),
        (("--seed", -1), "--seed"),
        (("--train-samples", 101), "--train-samples 101: the profile was made with at most 100"),
        (("--model", "another"), "is of the model paper"),
        (("--artefact", "nowhere"), "nowhere"),
    ],
)
def test_wrong_options_are_refused_before_work_begins(root, tmp_path, options, says):
    out = tmp_path / "out"
    refused(says, "--out", out, "--profile", root / "profile", *options)
    assert not out.exists()


def test_a_profile_of_other_prompts_is_never_silently_used(root, tmp_path, monkeypatch):
    given = ("--out", tmp_path / "out", "--profile", root / "profile", "--prompts")
    refused("was made from prompts.txt", *given, root / "others.txt")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(train_policy_job, "train_policy", killed)
    with pytest.raises(KilledError):
        run("train-policy", *given, root / "prompts.txt", *OPTIONS)


def test_a_folder_that_is_no_policy_s_is_left_alone(root, tmp_path):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "report.md").write_text("mine")
    refused("is no policy", "--out", out, "--profile", root / "profile", *OPTIONS)
    assert contents(out) == {out / "report.md": b"mine"}
    refused("is no policy", "--out", root / "profile", "--profile", root / "profile", *OPTIONS)
    refused("is a file", "--out", out / "report.md", "--profile", root / "profile", *OPTIONS)


def test_checkpoints_of_the_same_training_are_used_and_others_refused(root, tmp_path, monkeypatch):
    out, given = tmp_path / "out", ("--profile", root / "profile")
    policy = root / "policy"
    for finished in (policy, policy / "policy.safetensors"):
        refused("is a finished policy", "--out", out, *given, *OPTIONS, "--checkpoint", finished)

    with monkeypatch.context() as patch:
        patch.setattr(training_runs, "evaluate_policies", killed)
        with pytest.raises(KilledError):
            run("train-policy", "--out", out, *given, *OPTIONS)
    kept = out / "checkpoint"
    assert [path.name for path in out.rglob("*")] == ["checkpoint", "bandit.safetensors"]
    before = contents(out)
    other = [*OPTIONS, "--seed", 4]
    says = "is of another training (bandit, 10 episodes, seed 3, reward thesis with 0 for"
    refused(says, "--out", out, *given, *other)
    refused(says, "--out", tmp_path / "new", *given, *other, "--checkpoint", kept)
    kinds = [*OPTIONS, "--kind", "dqn"]
    refused("holds no checkpoint of these trainings (dqn)", "--out", tmp_path / "new", *given,
            *kinds, "--checkpoint", kept)  # fmt: skip
    refused("is a file", "--out", out, *given, *OPTIONS, "--checkpoint",
            kept / "bandit.safetensors")  # fmt: skip
    assert contents(out) == before
    path = kept / "bandit.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-60])
    refused("is damaged", "--out", out, *given, *OPTIONS)
    path.write_bytes((policy / "policy.safetensors").read_bytes())
    refused("is no checkpoint of a training", "--out", out, *given, *OPTIONS)
    path.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr("policies.training.bandit.BanditTrainer.run_round", killed)  # all is learned
        run("train-policy", "--out", out, *given, *OPTIONS, "--checkpoint", kept)
    assert not kept.exists()
    assert (out / "policy.json").exists()
