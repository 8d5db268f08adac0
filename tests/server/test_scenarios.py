"""What the default model's server does when its host gets into trouble; the sensors are planted."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
import uvicorn

from server.app import create_app
from server.engine.loading.configured_model import load_configured_model
from server.settings import Settings
from telemetry import Sampler, Snapshot, missing, present

GIB = 2**30
HEALTHY = Snapshot(
    taken_at=0.0,
    memory_total_bytes=present(16 * GIB, "planted"),
    memory_available_bytes=present(8 * GIB, "planted"),
    battery_charge_ratio=present(0.9, "planted"),
    on_battery=present(0.0, "planted"),
)
BARE = Snapshot(taken_at=0.0)  # as in a container without any sensor
DWELL = 1.0
SHORT = {"prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
LONG = {"prompt": "word " * 60, "max_tokens": 48, "temperature": 0, "ignore_eos": True}


class Planted(Sampler):
    """Says what the test says."""

    now = HEALTHY

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def latest(self) -> Snapshot:
        return replace(self.now, taken_at=time.monotonic())


@pytest.fixture(scope="module")
def host(default_model):
    settings = Settings(ttft_ms=1500, dwell_seconds=DWELL, max_running=4, shadow_share=0.0)
    planted = Planted()
    app = create_app(load_configured_model(settings.to_model_config()), settings, planted)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    planted.url = f"http://127.0.0.1:{port}"
    yield planted
    server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture(autouse=True)
def _healthy_and_rested(host):
    host.now = HEALTHY
    time.sleep(DWELL + 0.1)


def ask(host, body, **hints):
    return httpx.post(f"{host.url}/generate", json={**body, "trimtab": hints}, timeout=120)


def decision(response) -> tuple[str, int | None, str]:
    assert response.status_code == 200, response.text
    found = response.json()["trimtab"]
    return found["variant"], found["kv_budget"], found["reason"]


def test_an_idle_host_answers_with_the_base(host):
    assert decision(ask(host, SHORT)) == ("base", None, "base_fits")
    host.now = BARE
    assert decision(ask(host, SHORT)) == ("base", None, "base_fits")


def test_a_burst_is_met_by_narrower_variants_and_then_the_base_is_back(host):
    seen, started = [], time.monotonic()

    def one(index: int) -> None:
        time.sleep(0.04 * index)
        asked = time.monotonic()
        seen.append((asked, *decision(ask(host, LONG))))

    with ThreadPoolExecutor(60) as pool:
        list(pool.map(one, range(60)))
    seconds = time.monotonic() - started  # in which answers started, and were decided on
    by_time = sorted(seen)
    variants = [variant for _, variant, *_ in by_time]
    reasons = {reason for *_, reason in by_time}
    assert variants[0] == "base"
    assert set(variants) != {"base"}
    assert reasons <= {"base_fits", "queue", "ttft", "least_bad", "dwell"}
    assert reasons & {"queue", "least_bad"}
    changes = [after[0] for before, after in itertools.pairwise(by_time) if before[1] != after[1]]
    assert len(changes) <= 1 + seconds / DWELL
    time.sleep(DWELL + 0.1)
    assert decision(ask(host, SHORT)) == ("base", None, "base_fits")


def test_a_low_battery_saves_energy(host):
    host.now = replace(
        HEALTHY, on_battery=present(1.0, "planted"), battery_charge_ratio=present(0.15, "planted")
    )
    variant, _, reason = decision(ask(host, SHORT))
    assert variant != "base"
    assert reason == "battery"
    host.now = replace(host.now, on_battery=present(0.0, "planted"))  # plugged in
    time.sleep(DWELL + 0.1)
    assert decision(ask(host, SHORT))[0] == "base"


def test_a_hot_host_cools_down(host):
    host.now = replace(HEALTHY, temperature_celsius=present(97.0, "planted"))
    variant, _, reason = decision(ask(host, SHORT))
    assert variant != "base"
    assert reason == "thermal"
    host.now = replace(HEALTHY, cpu_speed_limit_ratio=present(1.0, "planted"))
    time.sleep(DWELL + 0.1)
    assert decision(ask(host, SHORT))[0] == "base"
    host.now = replace(HEALTHY, cpu_speed_limit_ratio=present(0.8, "planted"))
    time.sleep(DWELL + 0.1)
    assert decision(ask(host, SHORT))[2] == "thermal"


def test_little_memory_means_a_smaller_cache_and_not_a_smaller_model(host):
    host.now = replace(HEALTHY, memory_available_bytes=present(0.5 * GIB, "planted"))
    long = {"prompt": "word " * 700, "max_tokens": 4, "temperature": 0}
    assert decision(ask(host, long, ttft_ms=60_000)) == ("base", 512, "memory")
    assert decision(ask(host, SHORT)) == ("base", None, "base_fits")


def test_a_quality_floor_is_kept_or_the_request_is_refused(host):
    with ThreadPoolExecutor(48) as pool:
        crowd = [pool.submit(ask, host, LONG) for _ in range(48)]
        deadline = time.monotonic() + 20
        while httpx.get(f"{host.url}/health").json()["waiting"] < 30:
            assert time.monotonic() < deadline
        refused = ask(host, SHORT, max_loss=0.0, ttft_ms=100)
        floored = [ask(host, SHORT, max_loss=0.5, ttft_ms=100_000) for _ in range(3)]
        for one in crowd:
            assert one.result().status_code == 200
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    for response in floored:
        assert response.json()["trimtab"]["predicted_loss"] <= 0.5
    assert ask(host, SHORT, max_loss=0.0).json()["trimtab"]["variant"] == "base"


def test_missing_readings_are_not_taken_for_zero(host):
    host.now = replace(BARE, battery_charge_ratio=missing("test", "no battery"))
    metrics = httpx.get(f"{host.url}/metrics").text
    status = httpx.get(f"{host.url}/trimtab/status").json()
    assert status["host"]["battery_charge_ratio"]["value"] is None
    assert status["host"]["battery_charge_ratio"]["reason"] == "no battery"
    assert 'trimtab_telemetry_available{reading="battery_charge_ratio",uuid=""}' in metrics
