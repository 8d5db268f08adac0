"""User errors of the command line: exit code 2 and one line, no traceback, nothing half-written."""

import json
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from pruners.artefact.folder import load_artefact
from pruners.importance import SCORERS
from server.cli import models
from server.cli.main import main, train_policy_main
from server.cli.variants import SCORER_NAMES
from tests.support.commands import one_line, trimtab
from tests.support.tiny import save_tiny


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serve", "--port", "x"], "--port"),
        (["serve", "--port", "70000"], "port"),
        (["serve", "--weights", "int3"], "weights"),
        (["serve", "--device", "tpu"], "device"),
        (["serve", "--model", "no-such-model"], "no such model"),
        (["serve", "--max-waiting-tokens", "0"], "--max-waiting-tokens: input should be greater"),
        (["serve", "--no-such-option"], "--no-such-option"),
        (["frobnicate"], "frobnicate"),
        (["build"], "--out"),
        (["build", "--out", "x", "--device", "nonsense"], "--device nonsense"),
        (["build", "--out", "x", "--importance", "nonsense"], "there are: random"),
        (["build", "--out", "x", "--shares", "0.9,half"], "--shares 0.9,half"),
        (["build", "--out", "x", "--shares", "1.5"], "not between 0 and 1"),
    ],
)
def test_bad_arguments(arguments, says):
    one_line(trimtab(*arguments), says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(tmp_path):
    save_tiny(tmp_path / "mine")
    done = trimtab("serve", "--device", "cuda", "--model", tmp_path / "mine", "--port", 0)
    one_line(done, "PyTorch sees no GPU")


def test_the_version_is_that_of_the_package():
    done = trimtab("--version")
    assert done.returncode == 0
    assert done.stdout == f"trimtab {metadata.version('trimtab')}\n"


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]])
def test_help_and_version_need_neither_torch_nor_the_http_stack(arguments):
    code = f"""
import sys
from server.cli.main import cli
cli({arguments}, standalone_mode=False)
loaded = {{"torch", "transformers", "fastapi", "uvicorn"}} & sys.modules.keys()
sys.exit(", ".join(loaded) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"trimtab {metadata.version('trimtab')}\n"


def test_train_policy_is_a_command_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train-policy", "--help"])
    with pytest.raises(SystemExit) as ended:
        train_policy_main()
    assert not ended.value.code
    assert "--train-samples" in capsys.readouterr().out


def test_the_help_of_build_names_the_scorers():
    assert list(SCORER_NAMES) == list(SCORERS)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TRIMTAB_PORT", "abc", "TRIMTAB_PORT: "),
        ("TRIMTAB_KV_BUDGETS", "abc", "TRIMTAB_KV_BUDGETS: "),
        ("TRIMTAB_KV_BUDGETS", "[2]", "TRIMTAB_KV_BUDGETS: "),
    ],
)
def test_bad_environment(monkeypatch, variable, value, says):
    monkeypatch.setenv(variable, value)
    one_line(trimtab("serve"), says)


def test_an_unsupported_family_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    one_line(trimtab("serve", "--model", tmp_path), "gpt2")


def test_a_damaged_gguf_is_refused(tmp_path):
    bad = tmp_path / "broken.gguf"
    bad.write_bytes(b"GGUF" + b"\x00" * 64)
    one_line(trimtab("serve", "--model", bad), "broken.gguf")


@pytest.mark.slow
def test_build_then_serve_then_refuse_a_foreign_or_damaged_artefact(tmp_path):
    model = save_tiny(tmp_path / "mine", num_hidden_layers=8, max_position_embeddings=1024)
    out = tmp_path / "artefact"
    options = ("--out", out, "--tokens", 1024, "--shares", "0.9,0.6")
    done = trimtab("build", "--model", model, *options)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.glob(".artefact*"))  # the checkpoint is gone
    artefact = load_artefact(out)
    names = {v.name for v in artefact.variants}
    assert names
    assert names <= {"ffn-75", "ffn-50", "depth-5", "depth-2"} | {f"mix-{n}" for n in range(100)}
    assert set(artefact.table.kv_quality) == {512, 256}

    other = save_tiny(tmp_path / "other", seed=1, num_hidden_layers=8)
    one_line(trimtab("serve", "--model", other, "--artefact", out), "built for 'mine'")
    table = json.loads((out / "table.json").read_text())
    gone = next(iter(names))
    del table["quality"][gone]
    (out / "table.json").write_text(json.dumps(table))
    one_line(trimtab("serve", "--model", model, "--artefact", out), gone)
    (out / "order.safetensors").write_bytes(b"short")
    one_line(trimtab("serve", "--model", model, "--artefact", out), "damaged")


def test_a_port_in_use_is_said_before_the_model_is_loaded(tiny_server):
    done = trimtab("serve", "--port", tiny_server.port)
    one_line(done, "cannot listen")


def test_an_interruption_is_no_success(monkeypatch):
    def interrupted(*rest):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "pull_model", interrupted)
    monkeypatch.setattr(sys, "argv", ["trimtab", "pull"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
