"""What of the hub is downloaded, found in the cache, and refused."""

from pathlib import Path

import pytest
from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache

from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.hub import HubName, cached_model, pull_hub, resolve_hub
from tests.support.fake_hub import named


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_names():
    assert HubName.parse("me/it") == HubName("me/it", None)
    assert HubName.parse("me/it:Q4_0") == HubName("me/it", "Q4_0")
    for text in ("it", "me/it:", "a/b/c", "../it", "me/..", "/it", "me/it name", ""):
        assert HubName.parse(text) is None, text


def test_safetensors_come_without_what_is_not_read(hub):
    folder = pull_hub(named("me/plain"))
    assert names_in(folder) == {"config.json", "model.safetensors"}
    for name in names_in(folder):
        assert (folder / name).read_bytes() == hub.files["me/plain"][name]


def test_shards_are_those_of_the_index(hub):
    index = "model.safetensors.index.json"
    shards = {"model-1.safetensors", "model-2.safetensors"}
    assert names_in(pull_hub(named("me/shards"))) == {"config.json", index, *shards}
    del hub.files["me/shards"]["model-2.safetensors"]
    hub.commit = "f" * 40
    with pytest.raises(ModelSourceError, match=r"names model-2.safetensors, which is not there"):
        pull_hub(named("me/shards"))


def test_of_gguf_files_the_best_or_the_named_one_comes(hub):
    assert resolve_hub(named("me/gguf")).name == "tiny-Q4_K_M.gguf"
    assert resolve_hub(named("me/gguf:q8_0")).name == "tiny-Q8_0.gguf"
    first = resolve_hub(named("me/gguf:F16"))
    assert first.name == "tiny-F16-00001-of-00002.gguf"
    parts = {path.name for path in first.parent.iterdir()}
    assert parts == {"tiny-F16-00001-of-00002.gguf", "tiny-F16-00002-of-00002.gguf"}


def test_what_is_cached_needs_no_hub(hub):
    first = resolve_hub(named("me/plain")), resolve_hub(named("me/gguf:Q8_0"))
    asked = len(hub.requests)
    assert (resolve_hub(named("me/plain")), resolve_hub(named("me/gguf:Q8_0"))) == first
    assert resolve_hub(named("me/gguf")) == first[1], "of what is there, the best"
    assert len(hub.requests) == asked
    first[0].joinpath("model.safetensors").unlink()
    assert cached_model(named("me/plain")) is None


def test_other_programs_find_what_came(hub):
    folder = pull_hub(named("me/plain"))
    cache = constants.HF_HUB_CACHE
    found = try_to_load_from_cache("me/plain", "model.safetensors", cache_dir=cache)
    assert found == str(folder / "model.safetensors")
    (repo,) = scan_cache_dir(cache).repos
    assert repo.repo_id == "me/plain"
    assert repo.size_on_disk == sum(path.stat().st_size for path in folder.iterdir())
    assert scan_cache_dir(cache).warnings == []


def test_a_pull_brings_the_newest_commit_and_only_what_changed(hub):
    before = pull_hub(named("me/plain"))
    hub.commit, hub.files["me/plain"]["config.json"] = "e" * 40, b'{"model_type": "qwen2"}'
    hub.requests.clear()
    assert resolve_hub(named("me/plain")) == before
    after = pull_hub(named("me/plain"))
    assert after.name == "e" * 40
    assert (after / "config.json").read_bytes() == b'{"model_type": "qwen2"}'
    assert hub.ranges_of("me/plain/config.json") == [None]
    assert hub.ranges_of("me/plain/model.safetensors") == []
    assert resolve_hub(named("me/plain")) == after


def test_what_is_not_whole_is_not_used(hub):
    before = pull_hub(named("me/shards"))
    hub.commit, hub.spoil = "e" * 40, 50
    hub.files["me/shards"]["model-2.safetensors"] += b"more"
    with pytest.raises(ModelSourceError, match=r"model-2.safetensors arrived damaged"):
        pull_hub(named("me/shards"))
    assert cached_model(named("me/shards")) == before
    (before / "model-2.safetensors").unlink()
    assert cached_model(named("me/shards")) is None


def test_the_token_goes_to_the_hub_alone(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    hub.private = hub.gated = True
    pull_hub(named("me/plain"))
    by_host = {host: "authorization" in headers for host, _, headers in hub.requests}
    assert by_host == {"127.0.0.1": True, "localhost": False}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gated": True}, r"me/plain is gated: accept its terms at http.*/me/plain and set HF_TOK"),
        ({"private": True}, "has no model me/plain, or it is private; set HF_TOKEN"),
        ({"status": 404}, "it answers with status 404"),
        ({"status": 401}, "it wants a token: set HF_TOKEN"),
        ({"status": 403, "sent": "wrong"}, "it refuses the token in HF_TOKEN"),
        ({"status": 429}, "too many requests"),
        ({"status": 500}, "it is out of order"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub, monkeypatch, changes, says):
    if "sent" in changes:
        monkeypatch.setenv("HF_TOKEN", changes["sent"])
    for name, value in changes.items():
        setattr(hub, name, value)
    with pytest.raises(ModelSourceError, match=says) as error:
        pull_hub(named("me/plain"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("me/nothing", "has no model me/nothing"),
        ("me/pickle", "neither safetensors nor GGUF files; pytorch_model.bin is a pickle"),
        ("me/plain:Q4_0", "me/plain holds no GGUF files"),
        ("me/gguf:Q5_0", "has no Q5_0; there are: "),
    ],
)
def test_what_is_not_there_is_one_line(hub, name, says):
    with pytest.raises(ModelSourceError, match=says):
        pull_hub(named(name))


def test_offline_is_one_line(hub, monkeypatch):
    says = "offline: me/plain is not in the cache .*; connect, or give a path"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelSourceError, match=says):
        resolve_hub(named("me/plain"))
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelSourceError, match=says):
        resolve_hub(named("me/plain"))


@pytest.mark.parametrize(
    "name", ["../evil.gguf", "/evil.gguf", "a/../../evil.gguf", "C:\\evil.gguf"]
)
def test_a_file_that_would_lie_elsewhere_is_none(hub, name):
    hub.files["me/evil"] = {name: b"GGUF"}
    with pytest.raises(ModelSourceError, match="neither safetensors nor GGUF"):
        pull_hub(named("me/evil"))


def test_a_commit_that_is_none_is_refused(hub):
    hub.commit = "../../evil"
    with pytest.raises(ModelSourceError, match=r"the commit of me/plain is '\.\./\.\./evil'"):
        pull_hub(named("me/plain"))
