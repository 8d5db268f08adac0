"""How a server shuts down: by one signal or two, with an engine that is dead or hangs."""

import contextlib
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from server.app import create_app
from server.engine.loading.configured_model import load_configured_model
from server.http.connection_limiter import connection_limiter
from server.http.server import HttpServer, server_config
from server.http.startup_front import StartupFront
from server.settings import Settings
from server.testing import ServerProcess

pytestmark = pytest.mark.slow

LONG = {"prompt": "word", "max_tokens": 200, "temperature": 0, "ignore_eos": True}
ENDING = "the server is shutting down"


class SlowServer:
    """A server in a thread of this process, with an engine whose steps can be slowed down."""

    def __init__(self, folder, **settings):
        chosen = Settings(
            model=str(folder),
            threads=1,
            shadow_share=0,
            port=0,
            context=512,
            learn="off",
            **settings,
        )
        app = create_app(load_configured_model(chosen.to_model_config()), chosen)
        self.engine = app.state.service.engine
        self.pause = 0.0
        step = self.engine._runner.step

        def paced(*arguments):
            busy = step(*arguments)
            time.sleep(self.pause if busy else 0)
            return busy

        self.engine._runner.step = paced
        front = StartupFront(chosen, lambda: app)
        config = server_config(front, chosen, connection_limiter(chosen))
        self.server = HttpServer(config, front, chosen.drain_seconds)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()
        while front.loading:
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def signal(self):
        self.server.handle_exit(15, None)

    def health(self):
        return httpx.get(f"{self.url}/health", timeout=5)

    def ended(self, seconds):
        self._thread.join(timeout=seconds)
        return not self._thread.is_alive()

    def wait_until_busy(self, count):
        deadline = time.monotonic() + 20
        while len(self.engine.status().sequences) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def start_server(tiny_folder, monkeypatch):
    # The server would end this process, the tests', if its shutdown hangs.
    monkeypatch.setattr("server.http.server._end_after", lambda *_: threading.Timer(0, print))
    started = []

    def start(**settings):
        started.append(SlowServer(tiny_folder, **settings))
        return started[-1]

    yield start
    for one in started:
        one.server.should_exit = one.server.force_exit = True
        one.ended(10)


def post(url, body=LONG):
    return httpx.post(f"{url}/generate", json=body, timeout=60)


def stream(url, path="/v1/completions"):
    """Return the data of all events of a streamed answer."""
    with httpx.stream("POST", url + path, json={**LONG, "stream": True}, timeout=60) as response:
        assert response.status_code == 200
        return [line[6:] for line in response.iter_lines() if line.startswith("data: ")]


def unfinished_requests(port):
    """Open connections that sent nothing, half a head, and half a body."""
    parts = (b"", b"POST /generate HTT", b"POST /generate HTTP/1.1\r\nHost: localhost\r\n"
             b"Content-Length: 99\r\n\r\n{")  # fmt: skip
    clients = [socket.create_connection(("127.0.0.1", port)) for _ in parts]
    for client, part in zip(clients, parts, strict=True):
        client.sendall(part)
    return clients


def test_after_a_signal_running_requests_finish_and_new_ones_are_refused(start_server):
    server = start_server(drain_seconds=30)
    server.pause = 0.004
    with ThreadPoolExecutor(2) as pool, contextlib.ExitStack() as stack:
        silent, *half = [stack.enter_context(client) for client in unfinished_requests(server.port)]
        answer, events = pool.submit(post, server.url), pool.submit(stream, server.url)
        server.wait_until_busy(2)
        server.signal()
        while (health := server.health()).status_code == 200:
            time.sleep(0.01)
        refused = post(server.url)
        assert server.engine.status().sequences
        server.pause = 0.0
        assert health.json()["status"] == "draining"
        for response in (health, refused):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.headers["x-request-id"].startswith("req-")
            assert response.json()["error"]["message"] == ENDING
        assert answer.result().json()["usage"]["completion_tokens"] == 200
        assert events.result()[-1] == "[DONE]"
        assert "error" not in events.result()[-2]
        assert server.ended(5)  # requests that never came whole do not delay it
        assert server.server.exit_code == 0
        assert silent.recv(1) == b""
        for client in half:
            said = client.recv(1000)
            assert said.startswith(b"HTTP/1.1 503")
            assert b"\r\nx-request-id: req-" in said


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("seconds", [0, 0.3])
def test_requests_that_do_not_finish_in_time_get_an_error(start_server, seconds, hangs):
    server = start_server(drain_seconds=seconds)
    server.pause = 0.05
    with ThreadPoolExecutor(3) as pool:
        answer = pool.submit(post, server.url)
        streams = [
            pool.submit(stream, server.url, path) for path in ("/generate", "/v1/completions")
        ]
        server.wait_until_busy(3)
        server.pause = 5 if hangs else 0.05
        time.sleep(0.2)
        began = time.monotonic()
        server.signal()
        refused = answer.result()
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["message"] == ENDING
        for events in streams:
            *_, error, done = events.result()
            assert json.loads(error)["error"]["message"] == ENDING
            assert done == "[DONE]"
        assert seconds <= time.monotonic() - began < seconds + 2.5
        assert server.ended(5)
        assert server.server.exit_code == 0


def test_health_fails_while_a_step_hangs_and_recovers(start_server, caplog):
    server = start_server(stall_seconds=0.5)
    server.pause = 3.0
    assert server.health().status_code == 200
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, server.url, {**LONG, "max_tokens": 1})
        deadline = time.monotonic() + 10
        while (found := server.health()).status_code == 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert found.status_code == 503
        assert found.json()["status"] == "stalled"
        assert found.headers["retry-after"] == "1"
        assert "one step for" in found.json()["error"]["message"]
        assert answer.result().status_code == 200
    time.sleep(0.3)
    assert server.health().json()["status"] == "ready"
    found = [r.message for r in caplog.records if r.name == "server.http.server"]
    assert len(found) == 2, found


def test_when_the_engine_dies_all_requests_get_an_error_and_the_process_ends(
    start_server, caplog, monkeypatch
):
    monkeypatch.setattr("server.engine.recovery._MOST", 0)
    server = start_server(drain_seconds=30)
    server.pause = 0.05
    with ThreadPoolExecutor(2) as pool, caplog.at_level(logging.CRITICAL, "server.http"):
        answer, events = pool.submit(post, server.url), pool.submit(stream, server.url)
        server.wait_until_busy(2)
        began = time.monotonic()
        monkeypatch.setattr(server.engine, "_step", lambda: 1 / 0)
        assert answer.result().status_code == 503
        assert "the engine died" in json.loads(events.result()[-2])["error"]["message"]
        assert events.result()[-1] == "[DONE]"
        assert time.monotonic() - began < 2
    assert server.ended(5)
    assert server.server.exit_code == 1
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.CRITICAL] == [
        f"ending: {server.engine.failure}"
    ]


def test_an_engine_that_breaks_ends_its_requests_and_is_back_for_others(start_server, monkeypatch):
    server = start_server(drain_seconds=30)
    server.pause = 0.05
    whole = server.engine._step
    with ThreadPoolExecutor(2) as pool:
        answer, events = pool.submit(post, server.url), pool.submit(stream, server.url)
        server.wait_until_busy(2)
        monkeypatch.setattr(server.engine, "_step", lambda: 1 / 0)
        broken = answer.result()
        assert broken.status_code == 503
        assert "ZeroDivisionError" in broken.json()["error"]["message"]
        assert "ZeroDivisionError" in json.loads(events.result()[-2])["error"]["message"]
        assert events.result()[-1] == "[DONE]"
        monkeypatch.setattr(server.engine, "_step", whole)
        health, refused = server.health(), post(server.url)
        assert (health.status_code, health.json()["status"]) == (503, "restarting")
        assert refused.status_code == 503
    server.pause = 0.0
    deadline = time.monotonic() + 10
    while server.health().status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert post(server.url).json()["usage"]["completion_tokens"] == 200
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "trimtab_engine_restarts_total 1.0" in metrics
    assert not server.server.should_exit


def test_a_second_signal_ends_the_process_at_once(tiny_folder, tmp_path):
    server = ServerProcess(
        "--model", str(tiny_folder), log=tmp_path / "log",
        TRIMTAB_THREADS="1", TRIMTAB_DRAIN_SECONDS="60",
    ).wait()  # fmt: skip

    def post_until_refused():
        with contextlib.suppress(httpx.HTTPError):
            while post(server.url).status_code == 200:
                pass

    crowd = [threading.Thread(target=post_until_refused) for _ in range(16)]
    clients = unfinished_requests(server.port)
    for thread in crowd:
        thread.start()
    deadline = time.monotonic() + 20
    while not server.metrics()["trimtab_requests_running"]:
        assert time.monotonic() < deadline
    server.process.terminate()
    time.sleep(0.05)
    server.process.terminate()
    began = time.monotonic()
    assert server.process.wait(timeout=10) == 1
    assert time.monotonic() - began < 2
    assert "Traceback" not in server.log()
    for thread in crowd:
        thread.join()
    for client in clients:
        client.close()


def test_an_empty_api_key_is_refused_before_the_model_is_loaded(tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "server.cli", "serve"], env={"TRIMTAB_API_KEY": " "},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 2
    assert len(found.stderr.splitlines()) == 1
    assert "TRIMTAB_API_KEY" in found.stderr
