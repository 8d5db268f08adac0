"""The forms of a model's name: what clients see, and where its files are."""

from pathlib import Path

import pytest

from server.engine.loading import source
from server.engine.loading.source import ModelSourceError, model_name, resolve_model


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct"),
        ("me/it", "me/it"),
        ("hf:me/it", "me/it"),
        ("hf:me/it:Q4_K_M", "me/it:Q4_K_M"),
        ("me/it-GGUF:Q4_K_M", "me/it-GGUF:Q4_K_M"),
        ("ollama:llama3.2:1b", "llama3.2:1b"),
        ("folder", "folder"),
        (".", "here"),
        ("./folder/", "folder"),
        ("folder/mine.gguf", "mine"),
        ("folder/mine-Q8_0-00002-of-00003.gguf", "mine-Q8_0"),
    ],
)
def test_the_name_that_clients_see(tmp_path, monkeypatch, model, name):
    (tmp_path / "here" / "folder").mkdir(parents=True)
    for file in ("mine.gguf", "mine-Q8_0-00002-of-00003.gguf"):
        (tmp_path / "here" / "folder" / file).touch()
    monkeypatch.chdir(tmp_path / "here")
    assert model_name(model) == name


def test_a_path_under_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert resolve_model("~/mine") == tmp_path / "mine"
    assert model_name("~/mine") == "mine"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("nothing", "no such model: nothing"),
        ("hf:nothing", "no such model"),
        ("/no/such/folder", "no such model"),
        ("no/such/folder", "no such model"),
        ("no/such.gguf", "no such model"),
        ("me/it:", "no such model"),
        ("ollama:../x", "is no name"),
    ],
)
def test_what_is_no_model_is_one_line(model, says):
    with pytest.raises(ModelSourceError, match=says):
        resolve_model(model)


def test_a_path_goes_before_the_hub(tmp_path, monkeypatch):
    (tmp_path / "me" / "it").mkdir(parents=True)
    (tmp_path / "me" / "it" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("me/it") == Path("me/it")
    (tmp_path / "me" / "it" / "config.json").unlink()
    with pytest.raises(ModelSourceError, match="holds no config"):
        resolve_model("me/it")


def test_only_a_pull_asks_the_hub_for_the_newest(monkeypatch, tmp_path):
    from server.engine.loading.sources import hub

    monkeypatch.setattr(hub, "resolve_hub", lambda name: tmp_path / name.name / "cached")
    monkeypatch.setattr(hub, "pull_hub", lambda name: tmp_path / name.name / "newest")
    assert source.resolve_model("hf:me/it:Q4_0").name == "cached"
    assert source.pull_model("me/it").name == "newest"
