"""What one connection may send and for how long, around an application that only waits."""

import contextlib
import socket
import struct
import time

import pytest

from tests.support.raw_http import (
    GET,
    closing,
    connect,
    read,
    serving,
    status_of_error,
    wait_until,
)


@pytest.fixture(scope="module")
def app():
    with serving() as app:
        yield app


def reset(client):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


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
def test_a_request_that_is_too_large_or_not_http_is_refused_while_it_arrives(app, parts, status):
    before = len(app.ended)
    assert status_of_error(read(connect(app, *parts))) == status
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
@pytest.mark.parametrize("part_bytes", [10_000, 2**20])
def test_a_request_within_the_limits_arrives_whole(app, request_, body, part_bytes):
    whole = closing(request_)
    parts = [whole[at : at + part_bytes] for at in range(0, len(whole), part_bytes)]
    answer = read(connect(app, *parts))
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n" + body)


@pytest.mark.slow
def test_a_request_that_takes_too_long_is_refused(caplog):
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
        assert status_of_error(read(drip)) == 408
        for client in (silent, blank):
            with contextlib.suppress(ConnectionResetError):
                assert read(client) == b""
        assert status_of_error(read(head)) == 408
        assert status_of_error(read(body)) == 408
        assert read(kept).endswith(b"\r\n\r\n0")
        assert read(slow).endswith(b"\r\n\r\n0")  # the time of the app is not limited
        wait_until(lambda: not app.open)
    assert not caplog.records


def test_a_client_that_reads_no_answers_is_disconnected():
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


DISCONNECTS = {
    "reset": reset,
    "close": socket.socket.close,
    "half": lambda c: c.shutdown(socket.SHUT_WR),
}


@pytest.mark.slow
@pytest.mark.parametrize("pipelined", [0, 1, 4, 100])
@pytest.mark.parametrize("disconnect", DISCONNECTS)
@pytest.mark.parametrize("apart", [False, True])
def test_a_client_that_disconnects_cancels_all_its_requests(app, pipelined, disconnect, apart):
    request = b"POST /30 HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000
    before = len(app.ended)
    client = connect(app, *([request] * (1 + pipelined) if apart else [request * (1 + pipelined)]))
    wait_until(lambda: app.running == 1 or pipelined == 100)
    time.sleep(0.05)
    with contextlib.suppress(OSError):  # it may have been closed for sending far too much
        DISCONNECTS[disconnect](client)
    wait_until(lambda: not app.running and not app.open, seconds=2)
    assert app.ended[before:] == ["gone"]
    client.close()


def test_pipelined_requests_are_answered_in_order(app):
    posts = b"".join(
        b"POST /0.01 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (n, b"x" * n)
        for n in (1, 20_000, 3, 30_000, 5)
    )
    client = connect(app, posts + GET + closing(GET))
    bodies = [part.rpartition(b"\r\n\r\n")[2] for part in read(client).split(b"HTTP/1.1 200 OK")]
    assert bodies == [b"", b"1", b"20000", b"3", b"30000", b"5", b"0", b"0"]


def test_a_good_request_is_answered_although_a_bad_one_follows(app):
    client = connect(app, b"GET /0.1 HTTP/1.1\r\n\r\n" + b"\x00" * 100)
    answer = read(client)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1
