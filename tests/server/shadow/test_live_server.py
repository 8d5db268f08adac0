"""Shadow monitor, audit log, narrowing and refusal on a live server with a tiny model."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

SHORT = {"prompt": "y " * 30, "max_tokens": 150, "ignore_eos": True}


@pytest.fixture
def client(varied_server):
    with httpx.Client(base_url=varied_server.url, timeout=60) as client:
        yield client


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def eventually(check, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def crowd(client: httpx.Client, count: int) -> Iterator[list[Future]]:
    """Send so many requests at once; all are answered when the context ends."""
    with ThreadPoolExecutor(count) as pool:
        yield [pool.submit(client.post, "/generate", json=SHORT) for _ in range(count)]


def test_answers_of_variants_are_checked_against_the_base(client, audit_log: Path):
    def lines(request_id: str) -> dict[str, dict]:
        every = [json.loads(line) for line in audit_log.read_text().splitlines()]
        (own,) = {line["answer"] for line in every if line.get("id") == request_id}
        return {line["kind"]: line for line in every if line["answer"] == own}

    loss = 'trimtab_shadow_loss_nats_sum{variant="ffn-67"}'
    before, lost = metric(client, "trimtab_shadow_tokens_total"), metric(client, loss)
    body = {"prompt": "a secret story", "max_tokens": 20, "ignore_eos": True}
    ids = {}
    for variant in ("base", "ffn-67"):
        answer = client.post("/generate", json={**body, "trimtab": {"variant": variant}})
        ids[variant] = answer.json()["id"] + "-0"
    eventually(lambda: metric(client, "trimtab_shadow_tokens_total") == before + 20)
    assert metric(client, 'trimtab_variant_trusted{variant="ffn-67"}') == 1
    eventually(lambda: "shadow" in lines(ids["ffn-67"]))
    found = lines(ids["ffn-67"])
    assert found["shadow"]["kl"] > 0
    assert metric(client, loss) - lost == pytest.approx(found["shadow"]["kl"], rel=1e-4)
    assert found["answer"]["outcome"]["output_tokens"] == 20
    assert (found["answer"]["action"], found["answer"]["reason"]) == ("ffn-67", "pinned")
    assert lines(ids["base"]).keys() == {"answer"}  # the base's own answers are not checked
    assert "secret" not in audit_log.read_text()


def test_an_answer_that_allows_it_is_narrowed_when_others_wait(client):
    long = {"prompt": "x", "max_tokens": 400, "ignore_eos": True}
    allowing = {**long, "trimtab": {"narrow": True}}
    apart = {**long, "trimtab": {"narrow": True, "ttft_ms": 50_000}}  # other objectives
    time.sleep(1.1)  # the dwell time of earlier tests is over
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.post, "/generate", json=one) for one in (allowing, apart)]
        eventually(lambda: metric(client, "trimtab_requests_running") == 2)
        with crowd(client, 30):
            pass
        first, second = (one.result().json() for one in asked)
    assert first["trimtab"]["variant"] == second["trimtab"]["variant"] == "base"
    assert first["trimtab"]["narrowed_to"][0] in ("ffn-67", "ffn-34")
    assert "narrowed_to" not in second["trimtab"]
    assert first["usage"]["completion_tokens"] == 400


def test_a_request_with_max_loss_is_refused_when_too_many_wait(client):
    with_max_loss = {**SHORT, "trimtab": {"max_loss": 0.0}}
    with crowd(client, 24):
        eventually(lambda: client.get("/health").json()["waiting"] > 10)
        refused = client.post("/generate", json=with_max_loss)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    assert "max_loss" in refused.json()["error"]["message"]
    eventually(lambda: metric(client, "trimtab_requests_waiting") == 0)
    answered = client.post("/generate", json={**with_max_loss, "max_tokens": 4})
    assert answered.status_code == 200
    assert answered.json()["trimtab"]["variant"] == "base"
