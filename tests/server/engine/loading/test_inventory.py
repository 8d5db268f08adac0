"""What is said of the models on a machine, from a fake hub's cache and a made-up Ollama store."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from pruners.support.errors import UserError
from server.engine.loading import inventory
from server.engine.loading.inventory import models_here, read_stored, serving_here, summarise
from server.engine.loading.load import load_model
from server.engine.loading.memory_estimate import Serving, memory_estimate
from server.engine.loading.source import resolve_model
from tests.support.commands import trimtab
from tests.support.gguf_tiny import write_gguf
from tests.support.ollama_store import add_ollama
from tests.support.tiny import save_tiny

COMMIT = "a" * 40


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache with a folder and GGUF files, a model of Ollama, and no default model."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "trimtab"))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    save_tiny(snapshot(tmp_path, "me--plain"))
    (snapshot(tmp_path, "me--unfinished") / "config.json").write_text("{}")
    (snapshot(tmp_path, "me--encoder") / "config.json").write_text(
        '{"architectures": ["BertModel"]}'
    )
    (snapshot(tmp_path, "me--encoder") / "model.safetensors").touch()
    folder = snapshot(tmp_path, "me--gguf")
    file = write_gguf(folder / "tiny-Q8_0.gguf", types=lambda name: "Q8_0")
    write_gguf(folder / "tiny-F32.gguf")
    add_ollama(tmp_path / "ollama", "registry.ollama.ai/library/mine/1b", model=file.read_bytes())
    return tmp_path


def snapshot(root: Path, name: str) -> Path:
    repo = root / "hub" / f"models--{name}"
    (repo / "refs").mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(COMMIT)
    (repo / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
    return repo / "snapshots" / COMMIT


def test_every_model_is_found_under_its_name(here):
    found = models_here()
    assert list(found) == ["me/gguf:F32", "me/gguf:Q8_0", "me/plain", "ollama:mine:1b"]
    assert found["me/gguf:Q8_0"].name == "tiny-Q8_0.gguf"
    assert found["me/plain"].is_dir()


def test_the_default_model_is_there_once_it_was_pulled(here):
    folder = here / "trimtab" / "models" / "SmolLM2-135M-Instruct.Q4_1"
    folder.mkdir(parents=True)
    write_gguf(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    assert next(iter(models_here())) == "SmolLM2-135M-Instruct"


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q5_0", "Q4_K", "Q6_K", "IQ4_NL"])
def test_what_a_model_takes_is_what_it_takes_when_it_is_served(tmp_path, kind, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    path = write_gguf(tmp_path / "tiny.gguf", types=lambda name: kind)
    serving, _ = serving_here()
    told = memory_estimate(read_stored(path)[1], serving)
    weights = load_model(path, "tiny").weights
    taken = sum(tensor.nbytes for tensor in weights.tensors())
    assert told.weights == pytest.approx(taken, rel=0.02)
    assert summarise(path, serving, 1e12).needed == told.total


def test_a_model_of_ollama_is_served_from_its_file(here):
    assert load_model(resolve_model("ollama:mine:1b"), "mine:1b").weights.precision == "int8"


def test_bits_are_those_of_the_files(here):
    bits = {name: summarise(path, Serving(), 1e12).bits for name, path in models_here().items()}
    assert 32 <= bits["me/gguf:F32"] < 40
    assert 8.5 <= bits["me/gguf:Q8_0"] < 16
    assert bits["ollama:mine:1b"] == bits["me/gguf:Q8_0"]


def test_with_little_memory_a_shorter_text_fits_or_none(here):
    path = models_here()["me/plain"]
    needed = summarise(path, Serving(), 1e12).needed
    assert not summarise(path, Serving(), needed - 1).fits
    assert summarise(path, Serving(), needed).fits


def test_what_is_not_served_is_said(here):
    (snapshot(here, "me--other") / "config.json").write_text(
        '{"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}'
    )
    with pytest.raises(UserError, match="'gpt2' is not supported"):
        summarise(snapshot(here, "me--other"), Serving(), 1e12)
    broken = here / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UserError, match=r"broken\.gguf"):
        summarise(broken, Serving(), 1e12)


def test_the_command_prints_a_line_for_each(here, monkeypatch):
    monkeypatch.setattr(inventory, "serving_here", lambda: (Serving(), 450e6 + 1))
    (snapshot(here, "me--gguf") / "bad-Q2_K.gguf").write_bytes(b"GGUF" + bytes(64))
    out = trimtab("models").stdout
    lines = {name: next(x for x in out.splitlines() if name in x) for name in models_here()}
    assert "llama" in lines["me/plain"]
    assert "does not fit" in lines["me/plain"]
    assert "not served" in lines["me/gguf:Q2_K"]
    monkeypatch.setattr(inventory, "serving_here", lambda: (Serving(), 1e12))
    assert "512 tokens" in trimtab("models").stdout


def test_without_models_it_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path))
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert "`trimtab pull`" in trimtab("models").stdout
