"""From prompts to a policy that is served, on a tiny model, and judged from its audit log."""

import json

import httpx
import pytest

from benchmarks.live import ServerProcess
from policies.simulation.engine import Limits
from policies.simulation.profile import load_profile
from server.settings import Settings
from tests.server.test_cli import one_line, trimtab


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
    return root / "profile"


@pytest.fixture(scope="module")
def trained(profile):
    out = profile.parent / "policy"
    options = ("--episodes", 20, "--requests", 900, "--kind", "bandit", "--seeds", 2)
    done = trimtab("train-policy", "--out", out, "--profile", profile, *options)
    assert done.returncode == 0, done.stderr
    assert "gain over the rule" in done.stdout
    return out


def test_the_simulation_has_the_limits_of_a_server():
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert Limits() == Limits(defaults["max_running"], defaults["step_tokens"])


def test_the_profile_knows_every_prompt_and_variant(profile):
    found = load_profile(profile)
    assert found.variants == ("base", "ffn-67", "ffn-34")
    assert found.prompts.loss.shape == (60, 3)
    assert not found.prompts.loss[:, 0].any(), "the base loses nothing to itself"
    assert (found.prompts.loss[:, 2] > 0).all()
    assert (found.prompts.surprise > 0).all()
    assert min(found.rates.prompt) > 0
    assert found.joules is None or min(found.joules) > 0


def test_times_alone_are_measured_again(profile, varied_folders):
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


def test_testing_trains_nothing(trained, profile):
    before = (trained / "policy.safetensors").read_bytes()
    options = ("--profile", profile, "--requests", 900, "--mode", "test")
    done = trimtab("train-policy", "--out", trained, *options)
    assert done.returncode == 0, done.stderr
    assert (trained / "policy.safetensors").read_bytes() == before


def test_it_is_served_if_promoted_or_forced_and_judged_from_its_log(
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


def test_what_is_missing_is_said(tmp_path, varied_folders):
    model, _ = varied_folders
    one_line(trimtab("train-policy", "--out", tmp_path / "x"), "give --prompts, or --profile")
    assert not (tmp_path / "x").exists()
    one_line(trimtab("profile", "--out", tmp_path / "x"), "cannot read the profile")
    one_line(trimtab("estimate", "--log", tmp_path / "y", "--policy", "rule"), "cannot read")
    prompts = tmp_path / "few.txt"
    prompts.write_text("one prompt")
    done = trimtab("profile", "--out", tmp_path / "x", "--model", model, "--prompts", prompts)
    one_line(done, "has no variants to profile")
