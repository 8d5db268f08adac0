"""What one connection may send, for how long, and how many there may be; the app only waits."""

import asyncio
import contextlib
import functools
import json
import logging
import socket
import struct
import threading
import time
from dataclasses import replace

import pytest
import uvicorn

from server.http.connections import ClientTimeouts, ConnectionLimiter
from server.http.protocol import HttpProtocol

PATIENCE = ClientTimeouts(header=10, body=10)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class App:
    """Reads the body, waits `seconds` of the path `/seconds` or for a hang-up, and says so."""

    def __init__(self):
        self.running = 0
        self.ended = []

    async def __call__(self, scope, receive, send):
        self.running += 1
        try:
            await self.answer(scope, receive, send)
        finally:
            self.running -= 1

    async def answer(self, scope, receive, send):
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.ended.append("gone")
                return
            size += len(message["body"])
            more = message["more_body"]
        gone = asyncio.create_task(receive())
        await asyncio.wait({gone}, timeout=float(scope["path"].strip("/") or 0))
        self.ended.append("gone" if gone.done() else "done")
        gone.cancel()
        body = str(size).encode()
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@contextlib.contextmanager
def serving(most=100, **patience):
    app = App()
    connections = ConnectionLimiter(most, replace(PATIENCE, **patience))
    server = uvicorn.Server(
        uvicorn.Config(
            app, port=0, http=functools.partial(HttpProtocol, connections), ws="none",
            log_config=None, lifespan="off", access_log=False,
        )
    )  # fmt: skip
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    app.port = server.servers[0].sockets[0].getsockname()[1]
    app.open = server.server_state.connections
    yield app
    server.should_exit = server.force_exit = True
    thread.join(timeout=5)


@pytest.fixture(scope="module")
def app():
    with serving() as app:
        yield app


def connect(app, *parts):
    client = socket.create_connection(("127.0.0.1", app.port), timeout=10)
    with contextlib.suppress(OSError):
        for part in parts:
            client.sendall(part)
    return client


def read(client):
    """All that comes until the server closes."""
    found = b""
    while part := client.recv(65536):
        found += part
    client.close()
    return found


def refused(answer):
    head, _, body = answer.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["message"]
    assert b"connection: close" in head.lower()
    return int(head.split()[1])


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.01)


def last(request):
    """The same request, after which the server closes."""
    return request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)


CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([b"GET / HTTP/1.1\r\nX: ", *[b"x" * 2**20] * 64], 431),
        ([b"GET /", *[b"x" * 2**20] * 8], 431),
        ([b"GET / HTTP/1.1\r\n", b"x" * 2**20], 431),
        ([b"GET / HTTP/1.1\r\nX: ", b"x" * 66_000, b"\r\n\r\n"], 431),
        ([b"GET / HTTP/1.1\r\n", *(b"X%d: x\r\n" % at for at in range(101)), b"\r\n"], 431),
        ([CHUNKED, b"1;", b"x" * 2**20], 400),
        ([CHUNKED, b"1\r\nx\r\n" * 50_000], 400),
        ([CHUNKED, b"0\r\nX: ", b"x" * 2**20], 400),
        ([CHUNKED, b"0\r\n", *[b"X: x\r\n"] * 101, b"\r\n"], 431),
        ([CHUNKED, b"zz\r\n"], 400),
        ([b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"], 400),
        ([b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n"], 400),
        ([b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n"], 400),
        ([b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx"], 400),
        ([b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"], 400),
        ([b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"], 400),
    ],
)  # fmt: skip
def test_what_is_too_large_or_no_http_is_refused_while_it_comes_in(app, parts, status):
    before = len(app.ended)
    assert refused(read(connect(app, *parts))) == status
    assert "done" not in app.ended[before:]
    wait_until(lambda: not app.running)


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 65_000 + b"\r\n\r\n", b"0"),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: x\r\n" % at for at in range(98)) + b"\r\n", b"0"),
        (b"POST / HTTP/1.1\r\nContent-Length: 300000\r\n\r\n" + b"x" * 300_000, b"300000"),
        (CHUNKED + b"1\r\nx\r\n" * 10_000 + b"0\r\nX: y\r\n\r\n", b"10000"),
        (CHUNKED + (b"20\r\n" + b"x" * 32 + b"\r\n") * 9_000 + b"0\r\n\r\n", b"288000"),
        (b"GET / HTTP/1.0\r\n\r\n", b"0"),
        (b"POST / HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n"
         b"Content-Length: 2\r\n\r\nxx" + GET, b"2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("piece", [10_000, 2**20])
def test_what_is_within_the_limits_comes_in_whole(app, request_, body, piece):
    whole = last(request_)
    parts = [whole[at : at + piece] for at in range(0, len(whole), piece)]
    answer = read(connect(app, *parts))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n" + body)


def test_what_is_not_read_by_the_time_ends(caplog):
    with serving(header=0.3, body=0.4, idle=0.3) as app:
        silent, blank, head, body, kept = (
            connect(app), connect(app, b"\r\n"), connect(app, b"GET / HTTP/1.1\r\nHo"),
            connect(app, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nx"), connect(app, GET),
        )  # fmt: skip
        slow = connect(app, b"GET /0.8 HTTP/1.1\r\nConnection: close\r\n\r\n")
        drip = connect(app, b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(OSError):
            for _ in range(8):
                drip.sendall(b"X: y\r\n")
                time.sleep(0.1)
        assert refused(read(drip)) == 408
        for client in (silent, blank):
            with contextlib.suppress(ConnectionResetError):
                assert read(client) == b""
        assert refused(read(head)) == 408
        assert refused(read(body)) == 408
        assert read(kept).endswith(b"\r\n\r\n0")
        assert read(slow).endswith(b"\r\n\r\n0")  # the time of an answer is not the client's
        wait_until(lambda: not app.open)
    assert not caplog.records


def test_answers_that_nobody_reads_end():
    with serving(unread=0.3) as app:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", app.port))
        client.settimeout(0.2)
        with contextlib.suppress(OSError):
            while True:  # the answers fill every buffer between here and there
                client.sendall(GET * 32)
        wait_until(lambda: not app.open)
        client.close()


def test_idle_connections_give_way_oldest_first_and_busy_ones_do_not(caplog):
    with caplog.at_level(logging.WARNING, logger="server"), serving(most=20) as app:
        busy = [connect(app, b"GET /2 HTTP/1.1\r\nConnection: close\r\n\r\n") for _ in range(3)]
        wait_until(lambda: app.running == 3)
        idle = [connect(app, b"GET" if at % 2 else b"") for at in range(60)]
        body = connect(app, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        assert read(connect(app, last(GET))).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionResetError):
            assert idle[0].recv(1) == b""
        body.sendall(b"x" * 9)
        assert body.recv(100).startswith(b"HTTP/1.1 200")
        for client in busy:
            assert read(client).startswith(b"HTTP/1.1 200")
        wait_until(lambda: len(app.open) <= 20)
        for client in (*idle, body):
            client.close()
    assert len(caplog.records) == 1
    assert "all 20 connections are in use" in caplog.text


def test_where_all_are_busy_a_newcomer_is_told_to_come_again():
    with serving(most=3) as app:
        busy = [connect(app, b"GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n") for _ in range(3)]
        wait_until(lambda: app.running == 3)
        answer = read(connect(app, GET))
        assert refused(answer) == 503
        assert b"retry-after: 1" in answer
        for client in busy:
            assert read(client).startswith(b"HTTP/1.1 200")
        assert read(connect(app, last(GET))).startswith(b"HTTP/1.1 200")


LEAVES = {
    "reset": reset,
    "close": socket.socket.close,
    "half": lambda c: c.shutdown(socket.SHUT_WR),
}


@pytest.mark.parametrize("more", [0, 1, 4, 100])
@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("apart", [False, True])
def test_a_client_that_hangs_up_cancels_all_it_asked(app, more, leave, apart):
    request = b"POST /30 HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000
    before = len(app.ended)
    client = connect(app, *([request] * (1 + more) if apart else [request * (1 + more)]))
    wait_until(lambda: app.running == 1 or more == 100)
    time.sleep(0.05)
    with contextlib.suppress(OSError):  # it may have been closed for sending far too much
        LEAVES[leave](client)
    wait_until(lambda: not app.running and not app.open, seconds=2)
    assert app.ended[before:] == ["gone"]
    client.close()


def test_pipelined_requests_are_answered_in_order(app):
    posts = b"".join(
        b"POST /0.01 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (n, b"x" * n)
        for n in (1, 20_000, 3, 30_000, 5)
    )
    client = connect(app, posts + GET + last(GET))
    bodies = [part.rpartition(b"\r\n\r\n")[2] for part in read(client).split(b"HTTP/1.1 200 OK")]
    assert bodies == [b"", b"1", b"20000", b"3", b"30000", b"5", b"0", b"0"]


def test_a_bad_request_behind_a_good_one_does_not_cost_its_answer(app):
    client = connect(app, b"GET /0.1 HTTP/1.1\r\n\r\n" + b"\x00" * 100)
    answer = read(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


def test_three_hundred_idle_or_dripping_connections_leave_room_for_others():
    with serving(most=1000) as app:
        crowd = [connect(app, b"GET / HTTP/1.1\r\nX: " if at % 2 else b"") for at in range(300)]
        worst = 0.0
        for _ in range(20):
            for client in crowd[1::2]:
                client.sendall(b"x")
            began = time.monotonic()
            assert read(connect(app, last(GET))).startswith(b"HTTP/1.1 200")
            worst = max(worst, time.monotonic() - began)
        assert worst < 1
        for client in crowd:
            client.close()
