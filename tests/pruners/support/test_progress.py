"""Test the progress lines that a command prints when its output is not a terminal."""

import io

from rich.console import Console

from pruners.support.progress import progress_bars, track


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def printed_lines(seconds: float, steps: int) -> list[str]:
    """Return what is printed for a task of `steps` steps of `seconds` seconds each."""
    out, clock = io.StringIO(), Clock()
    with progress_bars(Console(file=out), clock) as progress:
        for _ in track(range(steps), "Reading [x]", progress):
            clock.now += seconds
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    return out.getvalue().splitlines()


def test_a_pipe_gets_a_line_every_tenth_and_at_the_end():
    assert printed_lines(0.5, 200) == [
        f"Reading [x]: {10 * part} %, {10 * part} s" for part in range(1, 11)
    ]


def test_slow_steps_give_a_line_every_ten_seconds():
    assert len(printed_lines(2.0, 1000)) == 200


def test_a_quick_task_gives_one_line():
    assert printed_lines(0.0001, 1000) == ["Reading [x]: 100 %, 0 s"]


def test_updates_give_lines_too():
    out, clock = io.StringIO(), Clock()
    with progress_bars(Console(file=out), clock) as progress:
        task = progress.add_task("Sampling", total=50)
        for done in range(1, 51):
            clock.now += 1
            progress.update(task, completed=done)
    assert out.getvalue().splitlines()[0] == "Sampling: 10 %, 5 s"
    assert out.getvalue().splitlines()[-1] == "Sampling: 100 %, 50 s"
