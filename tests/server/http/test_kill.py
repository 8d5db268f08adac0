"""A real process under load: SIGTERM loses nothing, SIGKILL leaves nothing half-written."""

import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from server.testing import ServerProcess

pytestmark = pytest.mark.slow

TOKENS = 60
BODY = {"prompt": "word", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}


@pytest.fixture
def start(tiny_folder, tmp_path):
    started = []

    def start_one(**environment):
        log = tmp_path / f"log-{len(started)}"
        cache = str(tmp_path / "cache")
        started.append(
            ServerProcess(
                "--model", str(tiny_folder), "--log-format", "json", log=log, TRIMTAB_THREADS="1",
                TRIMTAB_MAX_RUNNING="4", TRIMTAB_AUDIT_LOG=str(tmp_path / "audit.jsonl"),
                TRIMTAB_CACHE=cache, **environment,
            ).wait()
        )  # fmt: skip
        return started[-1]

    yield start_one
    for server in started:
        server.process.kill()
        server.process.wait()


class Crowd:
    """Clients that send one request after the other, half of them streams, until told to stop.

    `ends` has for each request `whole`, `refused` (503), `lost`, or `unsent` if no connection was
    made; what the server had begun to answer, or taken and not answered, is `lost`.
    """

    def __init__(self, url, count):
        self.url, self.ends, self.going = url, [], True
        self._pool = ThreadPoolExecutor(count)
        self._futures = [self._pool.submit(self._run, index % 2 == 0) for index in range(count)]

    def _run(self, streamed):
        while self.going:
            self.ends.append(self._ask(streamed))
            if self.ends[-1] in ("refused", "unsent"):
                return

    def _ask(self, streamed):
        try:
            with httpx.Client(trust_env=False, timeout=60) as client:
                if streamed:
                    return self._stream(client)
                response = client.post(f"{self.url}/v1/completions", json=BODY)
        except httpx.ConnectError:
            return "unsent"
        except httpx.TransportError as error:
            return f"lost: {error!r}"
        if response.status_code == 200:
            written = response.json()["usage"]["completion_tokens"]
            return "whole" if written == TOKENS else f"lost: {written}"
        return "refused" if response.status_code == 503 else f"lost: {response.status_code}"

    def _stream(self, client):
        body = {**BODY, "stream": True, "stream_options": {"include_usage": True}}
        with client.stream("POST", f"{self.url}/v1/completions", json=body) as response:
            if response.status_code == 503:
                response.read()
                assert response.headers["retry-after"]
                return "refused"
            events = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
        if events[-1:] != ["[DONE]"] or "error" in events[-2]:
            return f"lost: {events[-2:]}"
        written = json.loads(events[-2])["usage"]["completion_tokens"]
        return "whole" if written == TOKENS else f"lost: {written}"

    def wait(self):
        for future in self._futures:
            future.result(timeout=90)
        self._pool.shutdown()


def wait_until_waiting(server, seconds=30):
    deadline = time.monotonic() + seconds
    while not server.metrics()["trimtab_requests_waiting"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_under_load_loses_nothing_inside_the_drain_time(start):
    server = start(TRIMTAB_DRAIN_SECONDS="60")
    crowd = Crowd(server.url, 12)
    wait_until_waiting(server)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    crowd.going = False
    crowd.wait()
    assert set(crowd.ends) <= {"whole", "refused", "unsent"}, crowd.ends
    assert crowd.ends.count("whole") >= 4, "what ran and what waited was answered"
    assert "refused" in crowd.ends or "unsent" in crowd.ends
    lines = [json.loads(line) for line in server.log().splitlines()]
    requests = [line for line in lines if line["logger"] == "server.access"]
    assert sum(line["status"] == 200 for line in requests) == crowd.ends.count("whole")
    assert all(line["variant"] == "base" for line in requests if line["status"] == 200)
    assert not [line for line in lines if line["level"] in ("ERROR", "CRITICAL")]


def test_sigkill_leaves_nothing_half_written_and_the_next_start_is_well(start, tmp_path):
    server = start()
    crowd = Crowd(server.url, 8)
    wait_until_waiting(server)
    audit = tmp_path / "audit.jsonl"
    deadline = time.monotonic() + 30
    while not audit.read_bytes().count(b"\n") > 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    server.process.kill()
    crowd.going = False
    assert server.process.wait(timeout=10) == -signal.SIGKILL
    crowd.wait()
    text = audit.read_bytes()
    assert text.endswith(b"\n")
    for line in text.splitlines():
        assert json.loads(line)["kind"] in ("answer", "shadow")
    before = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not [path for path in before if path.suffix in (".tmp", ".part")]
    again = start()
    with httpx.Client(trust_env=False) as client:
        answer = client.post(f"{again.url}/v1/completions", json=BODY, timeout=60)
    assert answer.json()["usage"]["completion_tokens"] == TOKENS
    assert again.stop() == 0
    assert not [line for line in again.log().splitlines() if json.loads(line)["level"] != "INFO"]
    assert audit.read_bytes().startswith(text)


def test_a_slow_reader_delays_nobody_and_holds_no_cache(start):
    server = start()
    with httpx.Client(trust_env=False, timeout=60) as client:
        long = {**BODY, "max_tokens": 400, "n": 8, "logprobs": 20, "stream": True}
        with client.stream("POST", f"{server.url}/v1/completions", json=long) as unread:
            assert unread.status_code == 200
            ended = threading.Event()

            def ask():
                response = httpx.post(
                    f"{server.url}/v1/completions", json=BODY, timeout=60, trust_env=False
                )
                assert response.json()["usage"]["completion_tokens"] == TOKENS
                ended.set()

            asking = threading.Thread(target=ask)
            asking.start()
            asking.join(60)
            assert ended.is_set()
            server.wait_until_idle(30)  # the engine has written all of it, and freed the cache
            events = [line for line in unread.iter_lines() if line.startswith("data: ")]
            assert events[-1] == "data: [DONE]", "and what waited is all there"
