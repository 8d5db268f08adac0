"""Shadow, audit log, narrowing and dwell on a live server with a tiny model and its artefact."""

import json
import threading
import time
from pathlib import Path

import httpx
import pytest
import torch

from benchmarks.live import ServerProcess
from pruners.build import Sources, build
from pruners.recipe import Recipe
from server.engine.load import load_transformers
from tests.pruners.models import random_rows
from tests.tiny import save_tiny

RECIPE = Recipe(ffn_keep=(0.67, 0.34), shares=(), kv_budgets=(32,), rank=4, keep_all=True)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs") / "audit.jsonl"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, log: Path):
    root = tmp_path_factory.mktemp("watching")
    folder = save_tiny(root / "mine")
    rows = Sources(random_rows(6, (40,)), random_rows(2, (70,), seed=4), "random", "other")
    build(load_transformers(folder, torch.float32), "mine", rows, RECIPE).save(root / "artefact")
    server = ServerProcess(
        "--model", str(folder), "--artefact", str(root / "artefact"), "--max-running", "2",
        log=root / "server.log", TRIMTAB_THREADS="1", TRIMTAB_SHADOW_SHARE="1",
        TRIMTAB_AUDIT_LOG=str(log), TRIMTAB_TTFT_MS="40",
    )  # fmt: skip
    yield server.wait()
    server.stop()


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def lines(log: Path) -> list[dict]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def eventually(check, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_answers_of_variants_are_read_again_by_the_base(server, log):
    body = {"prompt": "a secret story", "max_tokens": 20, "ignore_eos": True}
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for variant in ("base", "ffn-67"):
            pinned = {**body, "trimtab": {"variant": variant}}
            assert client.post("/generate", json=pinned).status_code == 200
        eventually(lambda: metric(client, "trimtab_shadow_tokens_total") == 20)
        loss = metric(client, 'trimtab_shadow_loss_nats_sum{variant="ffn-67"}')
        assert loss > 0
        assert metric(client, 'trimtab_variant_trusted{variant="ffn-67"}') == 1
    eventually(lambda: any(line["kind"] == "shadow" for line in lines(log)))
    (shadow,) = [line for line in lines(log) if line["kind"] == "shadow"]
    assert shadow["kl"] == pytest.approx(loss, rel=1e-6)
    (answer,) = [line for line in lines(log) if line["id"] == shadow["id"] and line is not shadow
                 and line["kind"] == "answer"]  # fmt: skip
    assert answer["outcome"]["output_tokens"] == 20
    assert answer["action"] == "ffn-67"
    assert answer["reason"] == "pinned"
    assert "secret" not in log.read_text()


def test_an_answer_that_agreed_gets_narrower_when_others_wait(server):
    long = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "trimtab": {"narrow": True}}
    short = {"prompt": "y " * 30, "max_tokens": 150, "ignore_eos": True}
    found = []

    def ask() -> None:
        found.append(httpx.post(f"{server.url}/generate", json=long, timeout=60).json())

    time.sleep(1.1)  # any dwell of the test before is over
    first = threading.Thread(target=ask)
    first.start()
    time.sleep(0.05)
    crowd = [
        threading.Thread(
            target=lambda: httpx.post(f"{server.url}/generate", json=short, timeout=60)
        )
        for _ in range(30)
    ]
    for thread in crowd:
        thread.start()
    for thread in [first, *crowd]:
        thread.join()
    (answer,) = found
    assert answer["trimtab"]["variant"] == "base"
    assert answer["trimtab"]["narrowed_to"][0] in ("ffn-67", "ffn-34")
    assert answer["usage"]["completion_tokens"] == 400


def test_a_floor_in_a_late_queue_is_refused(server):
    body = {"prompt": "y " * 30, "max_tokens": 200, "ignore_eos": True}
    floored = {**body, "trimtab": {"max_loss": 0.0}}
    with httpx.Client(base_url=server.url, timeout=60) as client:
        crowd = [
            threading.Thread(
                target=lambda: httpx.post(f"{server.url}/generate", json=body, timeout=60)
            )
            for _ in range(24)
        ]
        for thread in crowd:
            thread.start()
        eventually(lambda: client.get("/health").json()["waiting"] > 10)
        refused = client.post("/generate", json=floored)
        for thread in crowd:
            thread.join()
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "max_loss" in refused.json()["error"]["message"]
        eventually(lambda: metric(client, "trimtab_requests_waiting") == 0)
        answered = client.post("/generate", json={**floored, "max_tokens": 4})
        assert answered.status_code == 200
        assert answered.json()["trimtab"]["variant"] == "base"
