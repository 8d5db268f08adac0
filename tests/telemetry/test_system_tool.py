"""Programs of the operating system that are asked beside the reader."""

import sys
import time

from telemetry import system_tool
from telemetry.system_tool import SystemTool

COUNTER = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
count = int(path.read_text()) + 1 if path.exists() else 1
path.write_text(str(count))
print(f"run {count}")
sys.exit(count == 2)
"""


def output_after(tool, condition, seconds=20.0):
    """Ask until the output meets a condition; return it."""
    deadline = time.monotonic() + seconds
    while not condition(found := tool.output()):
        assert time.monotonic() < deadline, f"still {found!r}"
        time.sleep(0.01)
    return found


def test_the_latest_output_is_kept_and_a_failure_takes_it_away(tmp_path):
    tool = SystemTool([sys.executable, "-c", COUNTER, str(tmp_path / "count")], 0.0)
    began = time.monotonic()
    assert tool.output() is None
    assert time.monotonic() - began < 5.0, "asking waits for the program"
    assert output_after(tool, bool) == "run 1\n"
    output_after(tool, lambda text: text is None)  # the second run fails
    assert output_after(tool, bool) == "run 3\n"


def test_a_program_runs_once_in_a_period(tmp_path):
    tool = SystemTool([sys.executable, "-c", COUNTER, str(tmp_path / "count")], 3600.0)
    for _ in range(3):
        assert output_after(tool, bool) == "run 1\n"
        assert tool._process is None


def test_a_program_that_is_not_there_is_not_tried_again():
    tool = SystemTool(["no-such-program"], 0.0)
    assert [tool.output() for _ in range(3)] == [None] * 3
    assert tool._command is None


def test_a_program_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(system_tool, "_MAX_SECONDS", 0.2)
    tool = SystemTool([sys.executable, "-c", "import time; time.sleep(600)"], 3600.0)
    assert tool.output() is None
    process = tool._process
    assert process is not None
    output_after(tool, lambda _: tool._process is None)
    assert process.returncode != 0
