"""What a server says while it loads, and how it ends when loading fails or is interrupted."""

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI

from server.engine.loading.stages import advance, stage
from server.http.connection_limiter import connection_limiter
from server.http.server import HttpServer, server_config
from server.http.startup_front import StartupFront
from server.settings import Settings

_PROGRAM = """
import sys, time
from server.http import StartupFront, connection_limiter, serve
from server.settings import Settings
settings = Settings(port=int(sys.argv[1]))
front = StartupFront(settings, lambda: time.sleep(60))
sys.exit(serve(front, settings, connection_limiter(settings)))
"""


class LoadingServer:
    """A server in a thread, whose loading goes on when `step` is set, and ends in `result`."""

    def __init__(self, result, **settings):
        self.step = threading.Event()
        self.closed = threading.Event()
        self.loading = threading.Event()
        chosen = Settings(port=0, **settings)
        self.front = StartupFront(chosen, lambda: self.load(result))
        config = server_config(self.front, chosen, connection_limiter(chosen))
        self.server = HttpServer(config, self.front, 1)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        assert self.loading.wait(10)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    def load(self, result):
        with stage("weights"):
            advance(0.25)
            self.loading.set()
            assert self.step.wait(10)
        if isinstance(result, Exception):
            raise result
        return result

    def end(self):
        self.server.should_exit = True
        self.thread.join(10)
        self.client.close()
        assert not self.thread.is_alive()


class Quiet:
    """Stands in for readiness and service of an application whose engine is fine."""

    failure, stalled, draining = None, False, False
    engine = None

    def __init__(self):
        self.engine = self

    def stop(self, seconds):
        pass


def application(server_closed):
    @asynccontextmanager
    async def lifespan(_):
        yield
        server_closed.append(True)

    app = FastAPI(lifespan=lifespan)
    app.state.readiness = app.state.service = Quiet()
    app.state.summary = {}

    @app.get("/health")
    async def health():
        return {"status": "ready"}

    return app


def test_while_it_loads_everything_is_503_and_then_the_same_socket_serves():
    closed = []
    server = LoadingServer(application(closed), max_body_bytes=2048)
    health = server.client.get("/health")
    assert health.status_code == 503
    assert health.headers["retry-after"] == "1"
    assert health.json() == {"status": "loading", "stage": "weights", "progress": 0.25}
    for refused in (
        server.client.post("/v1/completions", json={"prompt": "x"}),
        server.client.get("/v1/models"),
        server.client.get("/metrics"),
    ):
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        error = refused.json()["error"]
        assert error["type"] == "unavailable_error"
        assert error["message"] == "the server is loading the model (weights, 25%)"
    page = server.client.get("/page/main.js")
    assert page.status_code == 200, "the page shows how far it is"
    assert page.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert server.client.get("/").text.startswith("<!doctype html>")
    assert server.client.post("/generate", content=b"x" * 4096).status_code == 413
    assert server.client.get("/health", headers={"host": "evil.example"}).status_code == 403
    server.step.set()
    deadline = time.monotonic() + 10
    while server.client.get("/health").status_code != 200:
        assert time.monotonic() < deadline
    assert server.client.get("/health").json() == {"status": "ready"}
    server.end()
    assert closed == [True]


def test_a_key_is_asked_for_before_the_model_is_there():
    server = LoadingServer(application([]), api_key="secret")
    assert server.client.get("/health").status_code == 503
    assert server.client.get("/v1/models").status_code == 401
    key = {"authorization": "Bearer secret"}
    assert server.client.get("/v1/models", headers=key).status_code == 503
    server.step.set()
    server.end()


def test_when_loading_fails_the_server_ends_and_the_reason_is_kept():
    error = ValueError("no such model")
    server = LoadingServer(error)
    server.step.set()
    server.thread.join(5)
    assert not server.thread.is_alive()
    assert server.front.failure is error
    server.end()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_it_loads_ends_the_process_at_once(sent):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(port)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 20
    while True:
        try:
            found = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False)
            break
        except httpx.TransportError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert found.json()["status"] == "loading"
    began = time.monotonic()
    process.send_signal(sent)
    _, said = process.communicate(timeout=10)
    assert time.monotonic() - began < 2
    assert process.returncode == 0
    assert "Traceback" not in said
