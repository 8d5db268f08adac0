"""A server learns of a tiny model: it makes way, survives, and serves what it has learned."""

import json
import os
import signal
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from pruners.artefact.folder import load_artefact
from server.testing import ServerProcess
from tests.support.commands import trimtab
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.slow

PROMPT = "the quick brown fox jumps over the lazy dog " * 9


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A tiny model of a short context, of which all is learned in half a minute."""
    root = tmp_path_factory.mktemp("learning")
    save_tiny(root / "tiny", max_position_embeddings=128)
    return root


def serve(root):
    return ServerProcess(
        "--model", str(root / "tiny"), log=root / "server.log", TRIMTAB_LEARN="idle",
        TRIMTAB_CACHE=str(root / "cache"), TRIMTAB_THREADS="1", OMP_NUM_THREADS="1",
    ).wait()  # fmt: skip


def fetch(server, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(server.url + path, data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())


def until(server, holds, seconds=300):
    """Wait until the status of learning is as `holds` says; return all of the status."""
    deadline = time.monotonic() + seconds
    while True:
        status = fetch(server, "/trimtab/status")
        if holds(status["learning"]):
            return status
        assert status["learning"]["state"] not in ("failed", "refused"), status["learning"]
        assert time.monotonic() < deadline, (status["learning"], server.log())
        time.sleep(0.1)


def worker_of(server):
    children = psutil.Process(server.process.pid).children()
    (worker,) = [one for one in children if "server.learning.worker" in one.cmdline()]
    return worker


def is_stopped(worker):
    """Whether no thread of a process runs: all are in state T."""
    stats = Path(f"/proc/{worker.pid}/task").glob("*/stat")
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in stats} == {"T"}


def ask(server, prompt=PROMPT, **hints):
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "trimtab": hints}
    return fetch(server, "/v1/completions", body)


def test_it_makes_way_is_killed_goes_on_and_is_served(root):
    server = serve(root)
    try:
        until(server, lambda learning: learning["state"] == "running")
        worker = worker_of(server)
        ask(server, "a prompt of which nothing is used again")
        assert is_stopped(worker), "while it answers, and for two seconds more"
        until(server, lambda learning: learning["state"] == "paused", 5)
        until(server, lambda learning: "reading" in learning["done"])
        assert worker.nice() == 19
        status = fetch(server, "/trimtab/status")
        (first,) = [one["name"] for one in status["readers"][:1]]
        alive = ask(server, read=first)
        assert alive["trimtab"]["read"] == first
        assert alive["trimtab"]["read_tokens"]["shallow"] > 0
        assert 'trimtab_learning_stage_done{stage="reading"} 1.0' in _metrics(server)
    finally:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    deadline = time.monotonic() + 5
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the worker outlives the server"
        time.sleep(0.05)

    server = serve(root)
    try:
        status = fetch(server, "/trimtab/status")
        assert first in [one["name"] for one in status["readers"]], "it is found again"
        assert ask(server, read=first)["choices"] == alive["choices"]
        status = until(server, lambda learning: "depth" in learning["done"])
        assert [one["name"] for one in status["variants"]] == ["base", "depth-2"]
        assert ask(server, variant="depth-2")["trimtab"]["variant"] == "depth-2"
        done = trimtab("status", "--url", server.url)
        assert done.returncode == 0, done.stderr
        assert "done   depth cuts" in done.stdout
    finally:
        assert server.stop() == 0
    (kept,) = (root / "cache" / "artefacts").glob("[!.]*")
    assert load_artefact(kept).table.quality["depth-2"].kl > 0, "whole, though it was ended midway"


def _metrics(server):
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:
        return response.read().decode()
