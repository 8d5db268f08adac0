"""Processes that are bounded from outside, and templates where the system has no timer."""

import subprocess
import sys

import pytest

from server.api.prompt import chat_template
from server.api.prompt.chat_template import Chat, ChatTemplate, TemplateFailedError
from server.api.prompt.template_watchdog import watched


def run(code: str, max_seconds: float, max_memory: int):
    process = subprocess.Popen([sys.executable, "-c", code])
    with watched(process.pid, max_seconds, max_memory) as found:
        process.wait(30)
    return process.returncode, found.too_long, found.too_large


def test_a_process_that_takes_too_long_is_ended():
    code, too_long, too_large = run("while True: pass", 0.2, 2**40)
    assert code != 0
    assert (too_long, too_large) == (True, False)


def test_a_process_that_grows_too_large_is_ended():
    grow = "import time; x = bytearray(b'x' * 2**27); time.sleep(30)"
    code, too_long, too_large = run(grow, 60, 2**26)
    assert code != 0
    assert (too_long, too_large) == (False, True)


def test_a_process_within_bounds_ends_by_itself():
    assert run("print()", 60, 2**40) == (0, False, False)


def test_without_a_timer_of_the_system_a_template_is_bounded_too(monkeypatch):
    monkeypatch.setattr(chat_template, "HAS_TIMER", False)
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 0.2)  # before the worker's own timer
    loop = "{% if messages %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    template = ChatTemplate(loop + "{% endfor %}{% endif %}", {})
    with pytest.raises(TemplateFailedError, match=r"longer than 0.2 s"):
        template.render(Chat([{"role": "user", "content": "hi"}], {}), 1000)
    template.close()
