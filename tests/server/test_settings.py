"""Settings say whose fault they are; no variable changes what an offline job computes."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

import server
from pruners.support.checkpoint import Checkpoint
from server.engine.config import EngineConfig, ModelConfig
from server.engine.loading.load import load_model
from server.jobs.sample_answers import sample_answers
from server.jobs.self_generated_text import SelfGeneratedText
from server.settings import (
    GROUPS,
    Settings,
    SettingsError,
    read_settings,
    unknown_variables,
)
from server.settings_page import settings_page

HOSTILE = {
    "TRIMTAB_MODEL": "other", "TRIMTAB_ARTEFACT": "/nowhere", "TRIMTAB_DEVICE": "cuda",
    "TRIMTAB_WEIGHTS": "int4", "TRIMTAB_THREADS": "7", "TRIMTAB_CONTEXT": "64",
    "TRIMTAB_MAX_RUNNING": "3", "TRIMTAB_STEP_TOKENS": "17", "TRIMTAB_KV_TOKENS": "512",
    "TRIMTAB_KV_CACHE": "int8", "TRIMTAB_KV_SCORER": "nonsense", "TRIMTAB_KV_BUDGETS": "[33]",
    "TRIMTAB_SPECULATE": "0", "TRIMTAB_POLICY": "random", "TRIMTAB_EXPLORE": "1",
    "TRIMTAB_ANALYZER": "spacy", "TRIMTAB_TTFT_MS": "1", "TRIMTAB_PORT": "nonsense",
}  # fmt: skip


def test_the_defaults_of_the_configurations_are_those_of_the_settings():
    assert Settings().to_model_config() == ModelConfig()
    assert Settings().to_engine_config() == EngineConfig()


def test_jobs_import_neither_the_application_nor_the_settings():
    code = """
import importlib, pkgutil, sys
import server.jobs
for module in pkgutil.iter_modules(server.jobs.__path__):
    if module.name != "lm_eval":  # an extra package
        importlib.import_module(f"server.jobs.{module.name}")
parts = ("server.app", "server.assembly", "server.api", "server.http", "server.settings", "fastapi")
print(*(name for name in sys.modules if name.startswith(parts)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_every_offline_job_says_its_settings_itself():
    folder = Path(server.__file__).parent
    files = [*folder.glob("jobs/*.py"), folder / "cli/variants.py", folder / "cli/policies.py"]
    assert len(files) > 10
    for path in files:
        nodes = ast.walk(ast.parse(path.read_text()))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        assert "Settings" not in names, path
        assert "os.environ" not in path.read_text(), path


def test_what_a_job_computes_is_the_same_under_any_variable(tiny_folder, tmp_path, monkeypatch):
    def computed(where):
        with Progress(disable=True) as progress:
            rows = SelfGeneratedText(
                tiny_folder, Checkpoint(tmp_path / where, where), progress
            ).rows(3, 40, 1)
        return rows, sample_answers(load_model(tiny_folder, "tiny", "fp32"))

    rows, answers = computed("without")
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    hostile_rows, hostile_answers = computed("with")
    assert all(torch.equal(one, other) for one, other in zip(rows, hostile_rows, strict=True))
    assert hostile_answers == answers


@pytest.mark.parametrize(
    ("flags", "environ", "says"),
    [
        ({"port": 70000}, {}, "--port: input should be less than or equal to 65535"),
        ({}, {"TRIMTAB_PORT": "abc"}, "TRIMTAB_PORT: input should be a valid integer"),
        ({}, {"TRIMTAB_PORT": ""}, "TRIMTAB_PORT is empty"),
        ({}, {"TRIMTAB_API_KEY": ""}, "TRIMTAB_API_KEY is empty"),
        ({}, {"TRIMTAB_ARTEFACT": ""}, "TRIMTAB_ARTEFACT is empty"),
        ({"model": ""}, {}, "--model is empty"),
        ({"max_running": 0}, {"TRIMTAB_MAX_RUNNING": "4"}, "--max-running: "),
        ({"weights": "int3"}, {}, "--weights: input should be 'auto', 'fp32'"),
        ({}, {"TRIMTAB_KV_BUDGETS": "512,256"}, "TRIMTAB_KV_BUDGETS: expected a JSON list"),
        ({}, {"TRIMTAB_KV_BUDGETS": "[2]"}, "TRIMTAB_KV_BUDGETS: "),
        ({}, {"TRIMTAB_DRAIN_SECONDS": "inf"}, "TRIMTAB_DRAIN_SECONDS: input should be a finite"),
        ({}, {"TRIMTAB_STEP_TOKENS": "16", "TRIMTAB_MAX_RUNNING": "17"}, "at least max_running"),
    ],
)
def test_what_is_wrong_is_called_by_its_name(flags, environ, says, monkeypatch):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as error:
        read_settings(flags, environ)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_flag_goes_before_a_variable(monkeypatch):
    monkeypatch.setenv("TRIMTAB_MAX_RUNNING", "4")
    monkeypatch.setenv("TRIMTAB_KV_BUDGETS", "[512, 256]")
    found = read_settings({"max_running": 5, "port": None}, {})
    assert (found.max_running, found.kv_budgets) == (5, (512, 256))


def test_a_variable_that_nothing_reads_is_named_with_the_nearest():
    environ = {
        "TRIMTAB_MAXRUNNING": "3", "TRIMTAB_CACHE": "x", "TRIMTAB_NATIVE": "0", "HOME": "/",
        "trimtab_port": "1", "TRIMTAB_ISA": "avx2", "TRIMTAB_QQQQQQ": "1",
    }  # fmt: skip
    assert unknown_variables(environ) == [
        "TRIMTAB_MAXRUNNING is no setting and is ignored; did you mean TRIMTAB_MAX_RUNNING?",
        "TRIMTAB_QQQQQQ is no setting and is ignored",
    ]


def test_every_variable_that_code_reads_is_known():
    root = Path(server.__file__).parent.parent
    for folder in ("server", "controller", "policies", "pruners", "telemetry"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                text = node.value if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and text.startswith("TRIMTAB_") and text.isupper():
                    assert text == "TRIMTAB_" or not unknown_variables({text: "1"}), path


def test_every_setting_is_described_and_the_page_says_so():
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == settings_page()
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith("."), name
    assert set(GROUPS.values()) <= set(Settings.model_fields)
