"""From prompts to a policy that is served, on a tiny model, and judged from its audit log."""

import json
import shutil

import httpx
import pytest
import typer

from policies.simulation.engine import EngineLimits
from policies.simulation.profile import load_profile
from pruners.support.errors import UserError
from pruners.support.files import TargetError
from server.jobs import profile as profile_job
from server.jobs import prompt_losses
from server.settings import Settings
from server.testing import ServerProcess
from tests.support.commands import one_line, trimtab
from tests.support.train_policy import KilledError, killed, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def profile(varied_folders, tmp_path_factory):
    model, artefact = varied_folders
    root = tmp_path_factory.mktemp("policies")
    prompts = root / "prompts.jsonl"
    lines = [{"prompt": f"word {n} and word {n % 7} " * (1 + n % 3)} for n in range(60)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ("--model", model, "--artefact", artefact)
    done = trimtab(
        "profile", *given, "--out", root / "profile", "--prompts", prompts, "--tokens", 8
    )
    assert done.returncode == 0, done.stderr
    for what in ("Measuring prompts", "Timing variants"):
        assert f"{what}: 100 %" in done.stderr, "progress is said where nobody watches, too"
    return root / "profile"


@pytest.fixture(scope="module")
def trained(profile):
    out = profile.parent / "policy"
    options = ("--episodes", 20, "--requests", 900, "--kind", "bandit", "--seeds", 2)
    done = trimtab("train-policy", "--out", out, "--profile", profile, *options)
    assert done.returncode == 0, done.stderr
    assert "gain over the rule" in done.stdout
    for what in ("Training bandit", "Training bandit seed 1", "Trying policies"):
        assert f"{what}: 100 %" in done.stderr
    return out


def test_the_simulation_has_the_limits_of_a_server():
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert EngineLimits() == EngineLimits(defaults["max_running"], defaults["step_tokens"])


def test_the_profile_knows_every_prompt_and_variant(profile):
    found = load_profile(profile)
    assert found.variants == ("base", "ffn-67", "ffn-34")
    assert found.prompts.loss.shape == (60, 3)
    assert not found.prompts.loss[:, 0].any(), "the base loses nothing to itself"
    assert (found.prompts.loss[:, 2] > 0).all()
    assert (found.prompts.surprise > 0).all()
    assert min(found.rates.prompt) > 0
    assert found.joules is None or min(found.joules) > 0


def test_without_prompts_only_the_times_are_measured_again(profile, varied_folders):
    model, artefact = varied_folders
    before = load_profile(profile)
    done = trimtab("profile", "--model", model, "--artefact", artefact, "--out", profile)
    assert done.returncode == 0, done.stderr
    after = load_profile(profile)
    assert (after.prompts.loss == before.prompts.loss).all()
    assert after.rates != before.rates


def test_the_report_and_the_bundle_are_there(trained):
    names = {path.name for path in trained.iterdir()}
    assert names == {"policy.json", "policy.safetensors", "report.json", "report.md", "report.png"}
    body = json.loads((trained / "policy.json").read_text())
    assert body["report"]["verdict"]["promoted"] == body["promoted"]
    assert set(body["report"]["ablations"]) == {"host", "prompt"}
    assert len(body["report"]["verdict"]["trainings"]) == 2
    assert "2 trainings" in (trained / "report.md").read_text()


def test_a_test_measures_the_prompts_that_it_is_given(trained, varied_folders, tmp_path):
    model, artefact = varied_folders
    prompts = tmp_path / "held.jsonl"
    known = [f"word {n} and word {n % 7} " * (1 + n % 3) for n in range(10)]
    lines = [*known, *(f"other {n} and other {n % 5}" for n in range(40))]
    prompts.write_text("".join(json.dumps({"prompt": line}) + "\n" for line in lines))
    before = {path: path.read_bytes() for path in trained.iterdir() if path.is_file()}
    given = ("--model", model, "--artefact", artefact, "--prompts", prompts)
    run("train-policy", "--mode", "test", "--out", trained, *given)
    assert all(path.read_bytes() == body for path, body in before.items())
    learned = set(json.loads((trained / "policy.json").read_text())["training"]["learned"])
    batches_answered = load_profile(trained / "test" / "profile")
    assert batches_answered.model == "mine"
    assert (batches_answered.origin.name, batches_answered.origin.limit) == ("held.jsonl", 500)
    fresh = sum(name not in learned for name in batches_answered.prompts.names)
    assert 40 <= fresh < 50
    about = json.loads((trained / "test" / "report.json").read_text())["about"]
    assert f"{fresh} of the 50 prompts of held.jsonl" in about
    shutil.rmtree(trained / "test")


def test_an_interrupted_profile_goes_on_only_with_the_same(varied_folders, tmp_path, monkeypatch):
    model, artefact = varied_folders
    out, batches_answered = tmp_path / "profile", []
    texts = {"one": [f"word {n}" for n in range(40)], "other": [f"more {n}" for n in range(40)]}
    for name, lines in texts.items():
        body = "".join(json.dumps({"prompt": line}) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(body)
    given = ("--out", out, "--model", model, "--artefact", artefact, "--tokens", 8)
    answer_all = prompt_losses.answer_all

    def counted(*rest):
        batches_answered.append(1)
        return answer_all(*rest)

    monkeypatch.setattr(prompt_losses, "answer_all", counted)
    monkeypatch.setattr(profile_job, "_with_timing", killed)
    for name, batches in (("one", 3), ("one", 0), ("other", 3)):
        batches_answered.clear()
        with pytest.raises(KilledError):
            run("profile", *given, "--prompts", tmp_path / f"{name}.jsonl")
        assert len(batches_answered) == batches, name
        assert not out.exists()
    batches_answered.clear()
    with pytest.raises(KilledError):
        run("profile", *given, "--prompts", tmp_path / "other.jsonl", "--weights", "int8")
    assert batches_answered, "another precision answers otherwise"


def test_a_profile_replaces_only_a_profile(varied_folders, tmp_path):
    model, artefact = varied_folders
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("word")
    given = ("--model", model, "--artefact", artefact, "--prompts", prompts)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    for out in (tmp_path / "mine", prompts, artefact):
        with pytest.raises(TargetError):
            run("profile", "--out", out, *given)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
    assert prompts.read_text() == "word"


def test_a_policy_is_served_if_promoted_or_forced_and_estimated_from_its_log(
    trained, varied_folders, tmp_path
):
    model, artefact = varied_folders
    given = ("--model", str(model), "--artefact", str(artefact), "--policy", str(trained))
    promoted = json.loads((trained / "policy.json").read_text())["promoted"]
    if not promoted:
        one_line(trimtab("serve", *given), "--force serves it")
    audit = tmp_path / "audit.jsonl"
    server = ServerProcess(
        *given, "--force", log=tmp_path / "log", TRIMTAB_THREADS="1",
        TRIMTAB_EXPLORE="0.5", TRIMTAB_AUDIT_LOG=str(audit), TRIMTAB_SHADOW_SHARE="0",
    ).wait()  # fmt: skip
    try:
        reasons = set()
        for number in range(60):
            body = {"prompt": f"word {number}", "max_tokens": 4}
            found = httpx.post(f"{server.url}/generate", json=body, timeout=60).json()
            reasons.add(found["trimtab"]["reason"])
        assert {"learned", "explored"} <= reasons
        assert server.process.poll() is None
    finally:
        server.stop()
    entries = [json.loads(line) for line in audit.read_text().splitlines()]
    assert all(abs(sum(one["propensities"].values()) - 1) < 1e-9 for one in entries)
    assert all(one["action"] in one["propensities"] for one in entries)
    for policy in ("static:base", "rule", str(trained)):
        done = trimtab("estimate", "--log", audit, "--policy", policy)
        assert done.returncode == 0, done.stderr
        assert "SNIPS" in done.stdout
    one_line(trimtab("estimate", "--log", audit, "--policy", "nonsense"), "no policy 'nonsense'")


def test_what_is_missing_is_named_in_one_line(tmp_path, varied_folders):
    model, _ = varied_folders
    out, prompts = tmp_path / "x", tmp_path / "few.txt"
    prompts.write_text("one prompt")
    for says, arguments in (
        ("give --prompts, or --profile", ("train-policy", "--out", out)),
        ("make one with `trimtab profile`", ("profile", "--out", out)),
        ("cannot read", ("estimate", "--log", tmp_path / "y", "--policy", "rule")),
        ("nan is no finite number",
         ("estimate", "--log", tmp_path / "y", "--policy", "rule", "--lost", "nan")),
        ("no-such.txt", ("profile", "--out", out, "--prompts", "no-such.txt")),
        ("has no variants to profile; see `trimtab build`",
         ("profile", "--out", out, "--model", model, "--prompts", prompts)),
    ):  # fmt: skip
        with pytest.raises((UserError, typer.TyperException)) as error:
            run(*arguments)
        assert says in getattr(error.value, "format_message", error.value.__str__)()
        assert not out.exists()
