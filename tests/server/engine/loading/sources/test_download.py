"""Downloads: whole or not there, whatever happens to process, network or disk."""

import contextvars
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
from huggingface_hub import constants

from server.engine.loading.sources import download as downloading
from server.engine.loading.sources import progress as progressing
from server.engine.loading.sources.download import RemoteFile, download
from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.hub import cached_model, pull_hub
from server.engine.loading.sources.progress import TransferProgress
from server.engine.loading.stages import StartupStages, watch
from tests.support.fake_hub import digest_of, named, part_of


def test_a_download_is_a_stage_of_a_start():
    stages = StartupStages()

    def start() -> None:
        watch(stages)
        with TransferProgress("it", 200) as progress:
            progress.found(50)
            progress.received(100)
            assert (stages.name, stages.progress) == ("download", 0.75)
        assert (stages.name, stages.progress) == ("start", None)

    contextvars.copy_context().run(start)


def test_a_download_without_a_terminal_is_in_the_log(caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(progressing, "_LOG_SECONDS", 0.0)
    with TransferProgress("it", 4_000_000) as progress:
        progress.found(1_000_000)
        progress.received(1_000_000)
    assert "it: 50 % of 4.0 MB, " in caplog.text


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
