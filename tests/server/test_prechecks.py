"""Check that wrong settings are refused before the model is looked for."""

import json
import shutil

import pytest

from controller.analyzer import BACKENDS
from policies.bundle import PolicyBundle
from pruners.support.errors import UserError
from server.engine.config import ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.prechecks import check_choices, check_parts
from server.settings import Settings
from tests.support.commands import one_line, trimtab
from tests.support.network import random_network

NOWHERE = "no-such-model"  # an error that does not name it came first


@pytest.fixture
def artefact(varied_folders, tmp_path):
    return shutil.copytree(varied_folders[1], tmp_path / "artefact")


def check_settings(settings):
    check_choices(settings)
    check_parts(settings)


def refused(says, **given):
    with pytest.raises(UserError) as error:
        check_settings(Settings(model=NOWHERE, **given))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_that_fit_pass(artefact, tmp_path):
    log = tmp_path / "logs" / "audit.jsonl"
    for policy in ("rule", "random", "static:base", "static:ffn-67", "refusing:ffn-34"):
        check_settings(Settings(model=NOWHERE, artefact=artefact, policy=policy, audit_log=log))


def test_readers_of_the_artefact_may_be_named(artefact, tmp_path):
    policy = "static:base+read-70"
    refused("no policy 'static:base+read-70'", artefact=artefact, policy=policy)
    folder = tmp_path / "with readers"
    shutil.copytree(artefact, folder)
    (folder / "readers.json").write_text('{"readers": [{"name": "read-70"}]}')
    check_settings(Settings(model=NOWHERE, artefact=folder, policy=policy))
    (folder / "readers.json").write_text('{"readers": [7]}')
    refused("readers.json is damaged", artefact=folder, policy=policy)


def test_a_policy_that_cannot_be_served_is_refused(artefact, tmp_path):
    refused("no policy 'NOPE'", policy="NOPE")
    refused("static:ffn-67", artefact=artefact, policy="static:nope")
    refused("no policy 'static:ffn-67'; there are: rule, random, static:base,",
            policy="static:ffn-67")  # fmt: skip
    refused("policy.json", artefact=artefact, policy=str(tmp_path))
    variants = ("base", "ffn-67", "ffn-34")
    made = {"kind": "dqn", "variants": variants, "layers": random_network()}
    made |= {"training": {}, "report": {}}
    folder = tmp_path / "policy"
    PolicyBundle(fingerprint="another", promoted=True, **made).save(folder)
    refused("another model", artefact=artefact, policy=str(folder))
    mine = json.loads((artefact / "variants.json").read_text())["model"]["fingerprint"]
    PolicyBundle(fingerprint=mine, promoted=False, **made).save(folder)
    refused("--force serves it", artefact=artefact, policy=str(folder))
    check_settings(Settings(model=NOWHERE, artefact=artefact, policy=str(folder), force=True))


def test_parts_that_cannot_be_made_are_refused(artefact, tmp_path, monkeypatch):
    refused("there is no artefact", artefact=tmp_path / "none")
    refused("variants.json", artefact=tmp_path)
    refused("no kv_scorer 'nope'", kv_scorer="nope")
    refused("set kv_cache to auto", kv_scorer="quest", kv_cache="int8")
    refused("kv_budgets: a budget of 40 tokens", kv_scorer="quest", kv_budgets=(512, 40))
    (tmp_path / "file").write_text("")
    refused("cannot write the audit log", audit_log=tmp_path / "file" / "log")
    (artefact / "sensitivity.json").write_text("{}")
    refused("sensitivity.json is damaged", artefact=artefact)

    def missing():
        raise ImportError("No module named 'spacy'")

    monkeypatch.setitem(BACKENDS, "spacy", missing)
    refused("analyzer 'spacy': No module named 'spacy'", analyzer="spacy")


@pytest.mark.parametrize("name", ["variants.json", "table.json", "order.safetensors"])
def test_a_damaged_artefact_is_found_before_the_model_is_looked_for(artefact, name):
    (artefact / name).write_text("{")
    with pytest.raises(UserError, match="artefact"):
        load_configured_model(ModelConfig(model=NOWHERE, artefact=artefact))


def test_the_command_checks_first(artefact):
    given = ("serve", "--model", NOWHERE, "--artefact", artefact)
    one_line(trimtab(*given, "--policy", "NOPE"), "no policy 'NOPE'")
    one_line(trimtab(*given, "--policy", "static:base"), "no such model")
