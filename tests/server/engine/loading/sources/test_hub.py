"""Downloads from a fake hub: whole or not there, whatever happens to process, network or disk."""

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock
from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache

from server.engine.loading.sources import download as downloading
from server.engine.loading.sources.download import RemoteFile, download
from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.hub import HubName, cached_model, pull_hub, resolve_hub
from server.engine.loading.sources.progress import TransferProgress
from tests.support.fake_hub import digest_of


def named(text: str) -> HubName:
    name = HubName.parse(text)
    assert name is not None
    return name


def names_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def part_of(hub, repo: str, name: str) -> Path:
    """Where the bytes of an unfinished download are."""
    folder = Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{digest_of(hub.files[repo][name])}.incomplete"


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


def test_a_connection_that_breaks_goes_on_where_it_broke(hub):
    hub.cut = [10, 2000, 3000, 4000]  # two answers for config.json, then the weights
    folder = pull_hub(named("me/plain"))
    assert (folder / "model.safetensors").read_bytes() == hub.files["me/plain"]["model.safetensors"]
    assert hub.ranges_of("me/plain/config.json") == [None, "bytes=10-"]
    assert hub.ranges_of("me/plain/model.safetensors") == [None, "bytes=3000-", "bytes=7000-"]


def test_a_server_without_ranges_starts_over(hub):
    hub.cut, hub.ranges = [10, 2000], False
    folder = pull_hub(named("me/plain"))
    assert (folder / "model.safetensors").read_bytes() == hub.files["me/plain"]["model.safetensors"]


def test_a_server_that_brings_nothing_is_given_up(hub):
    hub.cut = [0] * 50
    with pytest.raises(ModelSourceError, match=r"offline: me/plain is not in the cache .*path$"):
        pull_hub(named("me/plain"))
    assert len(hub.ranges_of("me/plain/config.json")) == 5


def test_bytes_that_are_wrong_are_thrown_away(hub):
    hub.spoil = 50
    with pytest.raises(ModelSourceError, match=r"config.json arrived damaged: its digest is"):
        pull_hub(named("me/plain"))
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    hub.spoil = 0
    assert (pull_hub(named("me/plain")) / "config.json").exists()


@pytest.mark.parametrize("left", [b"wrong" * 100, b"x" * 50_000, None])
def test_what_a_killed_download_left_damaged_is_started_over(hub, left):
    content = hub.files["me/plain"]["model.safetensors"]
    left = bytes(len(content)) if left is None else left  # as long as the file, but other bytes
    part_of(hub, "me/plain", "model.safetensors").write_bytes(left)
    folder = pull_hub(named("me/plain"))
    assert (folder / "model.safetensors").read_bytes() == content


def test_a_file_that_was_whole_but_not_yet_named_is_not_asked_for(hub):
    content = hub.files["me/plain"]["model.safetensors"]
    part_of(hub, "me/plain", "model.safetensors").write_bytes(content)
    assert (pull_hub(named("me/plain")) / "model.safetensors").read_bytes() == content
    assert hub.ranges_of("me/plain/model.safetensors") == []


def test_a_file_that_is_shorter_than_stated_is_given_up(hub, tmp_path):
    """A range behind its end has status 416; what is there is then dropped."""
    content = hub.files["me/plain"]["model.safetensors"]
    url = f"{hub.url}/cdn/me/plain/model.safetensors"
    file = RemoteFile("it", url, len(content) + 10, digest_of(content))
    (tmp_path / "it.incomplete").write_bytes(content + b"beyond")
    with (
        TransferProgress("it", file.size) as progress,
        pytest.raises(ModelSourceError, match="it: the server ends the download too early"),
    ):
        download(file, tmp_path / "it", tmp_path / "lock", progress)
    start = f"bytes={len(content)}-"
    asked = hub.ranges_of("me/plain/model.safetensors")
    assert asked[:3] == [f"bytes={len(content) + 6}-", None, start]
    assert not (tmp_path / "it").exists()


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


def test_a_full_disk_is_one_line_before_and_during_a_download(hub, monkeypatch):
    usage = shutil.disk_usage(".")._replace(free=9000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelSourceError, match=r"disk full: me/plain needs 10.3 kB, 9.0 kB are"):
        pull_hub(named("me/plain"))


def test_a_disk_that_fills_up_keeps_what_came(hub, monkeypatch):
    real = downloading._append

    def full(file, part, progress):
        if file.name == "model.safetensors":
            part.write_bytes(hub.files["me/plain"][file.name][:4000])
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file, part, progress)

    with monkeypatch.context() as patch:
        patch.setattr(downloading, "_append", full)
        with pytest.raises(
            ModelSourceError, match=r"disk full: model.safetensors has 4.0 kB of 10"
        ):
            pull_hub(named("me/plain"))
    pull_hub(named("me/plain"))
    assert hub.ranges_of("me/plain/model.safetensors") == ["bytes=4000-"]


def test_one_downloads_and_the_other_waits(hub, caplog):
    caplog.set_level("INFO")
    content = hub.files["me/plain"]["model.safetensors"]
    folder = Path(constants.HF_HUB_CACHE) / ".locks" / "models--me--plain"
    folder.mkdir(parents=True)
    found = []
    with FileLock(folder / f"{digest_of(content)}.lock"):
        other = threading.Thread(target=lambda: found.append(pull_hub(named("me/plain"))))
        other.start()
        wait_for(lambda: "waiting for another process" in caplog.text)
        assert hub.ranges_of("me/plain/model.safetensors") == []
    other.join()
    assert (found[0] / "model.safetensors").read_bytes() == content


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_pull_goes_on_where_it_ended(hub):
    content = os.urandom(5 * 2**20)
    hub.files["me/plain"]["model.safetensors"] = content
    hub.hold = threading.Event()
    code = (
        "from server.engine.loading.sources.hub import HubName, pull_hub\n"
        "print(pull_hub(HubName.parse('me/plain')))"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": constants.HF_HUB_CACHE}
    command = [sys.executable, "-c", code]
    killed = subprocess.Popen(command, env=environment)
    part = part_of(hub, "me/plain", "model.safetensors")
    wait_for(lambda: part.exists() and part.stat().st_size >= 2**20, seconds=60)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert cached_model(named("me/plain")) is None
    left = part.stat().st_size
    hub.hold.set()
    hub.hold = None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert hub.ranges_of("me/plain/model.safetensors") == [None, f"bytes={left}-"]
    whole = Path(done.stdout.strip()) / "model.safetensors"
    assert hashlib.sha256(whole.read_bytes()).digest() == hashlib.sha256(content).digest()
