"""Check that jobs use neither the application nor the settings, whatever the environment holds."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

import server
from pruners.support.checkpoint import Checkpoint
from server.engine.loading.load import load_model
from server.jobs.sample_answers import sample_answers
from server.jobs.self_generated_text import SelfGeneratedText

SERVER = Path(server.__file__).parent
FILES = [
    *(SERVER / "jobs").glob("*.py"),
    *(SERVER / "cli" / f"{name}.py" for name in ("variants", "evaluation", "models", "policies")),
]
VARIABLES = {
    "TRIMTAB_MODEL": "other", "TRIMTAB_ARTEFACT": "/nowhere", "TRIMTAB_DEVICE": "cuda",
    "TRIMTAB_WEIGHTS": "int4", "TRIMTAB_THREADS": "7", "TRIMTAB_CONTEXT": "64",
    "TRIMTAB_MAX_RUNNING": "3", "TRIMTAB_STEP_TOKENS": "17", "TRIMTAB_KV_TOKENS": "512",
    "TRIMTAB_KV_CACHE": "int8", "TRIMTAB_KV_SCORER": "nonsense", "TRIMTAB_KV_BUDGETS": "[33]",
    "TRIMTAB_SPECULATE": "0", "TRIMTAB_POLICY": "random", "TRIMTAB_EXPLORE": "1",
    "TRIMTAB_ANALYZER": "spacy", "TRIMTAB_TTFT_MS": "1", "TRIMTAB_PORT": "nonsense",
    "TRIMTAB_CONFIG": "/nowhere",
}  # fmt: skip
"""Values that would change every result, or stop a server."""


@pytest.mark.slow
def test_importing_the_jobs_loads_neither_the_application_nor_the_settings():
    code = """
import importlib, pkgutil, sys
import server.jobs
for module in pkgutil.iter_modules(server.jobs.__path__):
    importlib.import_module(f"server.jobs.{module.name}")
parts = ("server.app", "server.assembly", "server.api", "server.http", "server.settings", "fastapi")
print(*(name for name in sys.modules if name.startswith(parts)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_job_and_no_offline_command_reads_settings_or_variables(path: Path):
    text = path.read_text()
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    assert "Settings" not in names
    assert "os.environ" not in text


@pytest.mark.slow
def test_a_job_computes_the_same_under_any_variable(tiny_folder, tmp_path, monkeypatch):
    def computed(name):
        with Progress(disable=True) as progress:
            checkpoint = Checkpoint(tmp_path / name, name)
            rows = SelfGeneratedText(tiny_folder, checkpoint, progress).rows(3, 40, 1)
        return rows, sample_answers(load_model(tiny_folder, "tiny", "fp32"))

    rows, answers = computed("without")
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    rows_again, answers_again = computed("with")
    assert all(torch.equal(one, other) for one, other in zip(rows, rows_again, strict=True))
    assert answers_again == answers
