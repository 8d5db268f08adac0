"""What a start says at a terminal and in a log: a real server, with and without a terminal."""

import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time

import httpx
import pytest

from server.http.startup_screen import StartupScreen
from server.settings import Settings

_CODES = re.compile(r"\x1b\[[0-9;]*m")
_TITLES = ("model", "weights", "runs on", "KV cache", "at once", "variants", "readers", "policy",
           "memory", "page", "API")  # fmt: skip


def at_terminal(model, **environment):
    """Start a server at a terminal, and return what that shows, and the exit code."""
    ours, theirs = pty.openpty()
    known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM")}
    process = subprocess.Popen(
        [sys.executable, "-m", "server.cli", "serve", "--model", str(model), "--port", "0",
         "--threads", "1", "--learn", "off"],
        stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL,
        env={**known, "TERM": "xterm", **environment},
    )  # fmt: skip
    os.close(theirs)
    shown, deadline = b"", time.monotonic() + 120
    while b"Ctrl+C" not in shown and time.monotonic() < deadline:
        if select.select([ours], [], [], 1)[0]:
            shown += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    code = process.wait(30)
    os.close(ours)
    return shown.decode().replace("\r\n", "\n"), code


@pytest.fixture(scope="module")
def shown(tiny_folder):
    text, code = at_terminal(tiny_folder)
    assert code == 0, text
    return text


def test_a_terminal_shows_stages_with_seconds_and_what_is_served(shown):
    plain = _CODES.sub("", shown)
    for stage in ("imports", "settings", "model", "weights", "controller"):
        assert re.search(rf"^ +{stage} +\d+\.\d\d s$", plain, re.MULTILINE), stage
    rows = dict(re.findall(r"^  (\w+(?: \w+)?)  +(\S.*)$", plain.split("Ready")[1], re.MULTILINE))
    assert set(_TITLES) <= set(rows)
    assert rows["runs on"].startswith("CPU, 1 thread")
    assert rows["variants"] == "base"
    assert rows["API"] == rows["page"] + "v1"
    assert re.search(r"Ready \d+\.\d s after the start", plain)
    assert "loading.stages" not in plain  # a stage is told once


def test_colours_are_used_at_a_terminal_unless_no_color_is_set(shown, tiny_folder):
    assert _CODES.search(shown)
    text, code = at_terminal(tiny_folder, NO_COLOR="1")
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3\dm", text)


def test_without_a_terminal_every_line_is_one_of_the_log(tiny_server):
    lines = tiny_server.log().splitlines()
    assert "\x1b" not in tiny_server.log()
    for title in _TITLES:
        assert any(f"INFO trimtab: {title}: " in line for line in lines), title
    assert any(re.fullmatch(r"INFO \S+: weights: \d+\.\d\d s", line) for line in lines)
    assert any(
        re.fullmatch(r"INFO trimtab: ready \d+\.\d s after the start", line) for line in lines
    )


def test_the_command_that_is_shown_gets_an_answer(tiny_server):
    line = next(one for one in tiny_server.log().splitlines() if "INFO trimtab: try: " in one)
    program, url, header, named, data, body = shlex.split(line.partition("try: ")[2])
    assert (program, header, data) == ("curl", "-H", "-d")
    name, _, value = named.partition(": ")
    answer = httpx.post(url, headers={name: value}, content=body, timeout=60)
    assert answer.status_code == 200, answer.text
    page = next(one for one in tiny_server.log().splitlines() if "trimtab: page: " in one)
    assert httpx.get(page.partition("page: ")[2]).status_code == 200


@pytest.mark.parametrize(
    ("settings", "address"),
    [
        ({}, "http://127.0.0.1:81"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:81"),
        ({"host": "::"}, "http://[::1]:81"),
        ({"host": "models.example"}, "http://models.example:81"),
    ],
)
def test_the_address_is_one_that_this_machine_can_ask(settings, address):
    assert StartupScreen(Settings(**settings)).address(81) == address


def test_a_key_is_asked_for_and_never_shown():
    screen = StartupScreen(Settings(api_key="opensesame"))
    example = " ".join(screen.example("http://127.0.0.1:81"))
    assert "Authorization: Bearer KEY" in example
    assert "opensesame" not in example
    assert "Authorization" not in " ".join(StartupScreen(Settings()).example("x"))
