"""Names in a made-up store of Ollama, laid out as its programs lay it out."""

from pathlib import Path

import pytest

from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.ollama import OllamaName, ollama_models, resolve_ollama
from tests.support.ollama_store import add_ollama


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("text", "manifest"),
    [
        ("llama3.2", "registry.ollama.ai/library/llama3.2/latest"),
        ("llama3.2:1b", "registry.ollama.ai/library/llama3.2/1b"),
        ("me/mine:7b-q4_0", "registry.ollama.ai/me/mine/7b-q4_0"),
        ("hf.co/me/it-GGUF:Q4_K_M", "hf.co/me/it-GGUF/Q4_K_M"),
    ],
)
def test_a_name_leads_to_its_file(store, text, manifest):
    wanted = add_ollama(store, manifest, model=b"GGUF" + text.encode())
    add_ollama(store, "registry.ollama.ai/library/other/latest", model=b"GGUF other")
    assert resolve_ollama(text) == wanted
    assert OllamaName.parse(text).name == text
    assert set(ollama_models()) == {text, "other"}
    assert ollama_models()[text] == wanted


def test_the_tag_latest_may_be_said():
    assert OllamaName.parse("llama3.2:latest").name == "llama3.2"


def test_what_of_a_model_is_ignored_is_said(store, caplog):
    layers = {"model": b"GGUF", "template": b"{{ .Prompt }}", "params": b"{}", "license": b"MIT"}
    add_ollama(store, "registry.ollama.ai/library/mine/latest", **layers)
    resolve_ollama("mine")
    assert "ollama:mine: Ollama's template, params are ignored" in caplog.text
    assert "license" not in caplog.text


def test_what_is_not_there_is_one_line_with_what_is(store):
    add_ollama(store, "registry.ollama.ai/library/mine/1b", model=b"GGUF")
    says = rf"ollama:mine is not in .*looked in {store}; there are: mine:1b\); .*`ollama pull mine`"
    with pytest.raises(ModelSourceError, match=says):
        resolve_ollama("mine")


@pytest.mark.parametrize("text", ["", ":1b", "mine:", "../mine", "a/b/c/d", "mine:../x", "a b"])
def test_a_name_that_is_none_is_refused(store, text):
    with pytest.raises(ModelSourceError, match="is no name such as ollama:llama3"):
        resolve_ollama(text)


def test_a_file_that_is_cut_or_gone_is_refused(store):
    blob = add_ollama(store, "registry.ollama.ai/library/mine/latest", model=b"GGUF whole")
    blob.write_bytes(b"GGUF")
    with pytest.raises(ModelSourceError, match="not whole"):
        resolve_ollama("mine")
    blob.unlink()
    with pytest.raises(ModelSourceError, match="not whole"):
        resolve_ollama("mine")
    assert ollama_models() == {}


def test_what_is_more_or_less_than_a_model_is_refused(store):
    add_ollama(
        store, "registry.ollama.ai/library/tuned/latest", model=b"GGUF", adapter=b"GGUF lora"
    )
    with pytest.raises(ModelSourceError, match="has an adapter, which is not supported"):
        resolve_ollama("tuned")
    add_ollama(store, "registry.ollama.ai/library/cloud/latest", license=b"MIT")
    with pytest.raises(ModelSourceError, match="names 0 GGUF files"):
        resolve_ollama("cloud")
    path = store / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest"
    path.parent.mkdir(parents=True)
    path.write_text('{"layers": [')
    with pytest.raises(ModelSourceError, match="names 0 GGUF files"):
        resolve_ollama("broken")
    assert ollama_models() == {}


def test_without_the_variable_the_users_store_comes_first(tmp_path, monkeypatch):
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    store = tmp_path / ".ollama" / "models"
    wanted = add_ollama(store, "registry.ollama.ai/library/mine/latest", model=b"GGUF")
    assert resolve_ollama("mine") == wanted
