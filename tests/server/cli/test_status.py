"""`trimtab status`: what a running server says, and one clear line where there is none."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from server.learning.supervisor import LearningStatus
from tests.support.commands import one_line, trimtab

RUNNING = LearningStatus(
    "idle", "paused", "requests are being answered", "budgets", "Measuring quality", 0.4,
    ("reading",), ("mix-80",),
)  # fmt: skip
STATUS = {
    "model": "mine",
    "policy": "rule",
    "load": {"running": 1, "waiting": 2, "kv_ratio": 0.25},
    "variants": [{"name": "base"}, {"name": "depth-27"}],
    "readers": [{"name": "read-67"}],
    "learning": RUNNING.to_json(),
}


@pytest.fixture
def answers():
    """The answer of a server by its path: a status and a body. Yields it with the address."""
    told = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            told["key"] = self.headers.get("Authorization")
            status, body = told[self.path]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield told, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_it_tells_what_is_served_and_learned(answers):
    told, url = answers
    told["/trimtab/status"] = 200, json.dumps(STATUS).encode()
    done = trimtab("status", "--url", url + "/", "--api-key", "secret")
    assert done.returncode == 0, done.stderr
    assert told["key"] == "Bearer secret"
    assert done.stdout.splitlines() == [
        "model     mine, policy rule",
        "load      1 running, 2 waiting, 25 % of the KV cache",
        "variants  base, depth-27",
        "readers   read-67",
        "learning  paused: requests are being answered",
        "          done   first reading depth",
        "          now    losses of KV budgets, measuring quality 40 %",
        "          later  further reading depths",
        "          later  depth cuts",
        "          later  width cuts",
        "          served after the next start: mix-80",
    ]


def test_all_of_it_is_there_as_json(answers):
    told, url = answers
    told["/trimtab/status"] = 200, json.dumps(STATUS).encode()
    assert json.loads(trimtab("status", "--url", url, "--json").stdout) == json.loads(
        json.dumps(STATUS)
    )


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, b"", "needs its API key"),
        (503, b'{"error": {"message": "loading: reading weights"}}', "loading: reading weights"),
        (500, b"oops", "status 500"),
        (200, b"<html>", "no server of Trimtab at"),
        (200, b"[]", "no server of Trimtab at"),
    ],
)
def test_anything_else_is_one_clear_line(answers, status, body, says):
    told, url = answers
    told["/trimtab/status"] = status, body
    one_line(trimtab("status", "--url", url), says)


def test_where_nobody_listens_is_said(answers):
    one_line(trimtab("status", "--url", "http://127.0.0.1:9"), "no server of Trimtab at")
    one_line(trimtab("status", "--url", "nonsense"), "no server of Trimtab at")
