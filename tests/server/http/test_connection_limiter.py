"""How many connections may be open, around an application that only waits."""

import contextlib
import logging
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


@pytest.mark.slow
def test_at_the_limit_the_longest_idle_connections_are_closed_and_busy_ones_are_not(caplog):
    with caplog.at_level(logging.WARNING, logger="server"), serving(max_connections=20) as app:
        busy = [connect(app, b"GET /2 HTTP/1.1\r\nConnection: close\r\n\r\n") for _ in range(3)]
        wait_until(lambda: app.running == 3)
        idle = [connect(app, b"GET" if at % 2 else b"") for at in range(60)]
        body = connect(app, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n")
        assert read(connect(app, closing(GET))).startswith(b"HTTP/1.1 200")
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


@pytest.mark.slow
def test_a_new_connection_gets_503_while_all_others_are_busy():
    with serving(max_connections=3) as app:
        busy = [connect(app, b"GET /1 HTTP/1.1\r\nConnection: close\r\n\r\n") for _ in range(3)]
        wait_until(lambda: app.running == 3)
        answer = read(connect(app, GET))
        assert status_of_error(answer) == 503
        assert b"retry-after: 1" in answer
        for client in busy:
            assert read(client).startswith(b"HTTP/1.1 200")
        assert read(connect(app, closing(GET))).startswith(b"HTTP/1.1 200")


def test_three_hundred_idle_or_dripping_connections_leave_room_for_others():
    with serving(max_connections=1000) as app:
        crowd = [connect(app, b"GET / HTTP/1.1\r\nX: " if at % 2 else b"") for at in range(300)]
        longest = 0.0
        for _ in range(20):
            for client in crowd[1::2]:
                client.sendall(b"x")
            began = time.monotonic()
            assert read(connect(app, closing(GET))).startswith(b"HTTP/1.1 200")
            longest = max(longest, time.monotonic() - began)
        assert longest < 1
        for client in crowd:
            client.close()
