"""Progress of long commands: bars on a terminal, occasional lines elsewhere, or nothing."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")
_STEP_PERCENT = 10.0  # a line after this much progress, but no two within _MIN_SECONDS
_MIN_SECONDS = 1.0
_MAX_SECONDS = 10.0  # a line after this time, whatever the progress


def progress_bars(
    console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """Return a command's progress display, on standard error unless a console is given.

    Each task shows its description, its progress, and the time elapsed and remaining.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        return _ProgressLines(console, clock)
    columns = (TextColumn("{task.description}"), BarColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def track(items: Sequence[Item], what: str, progress: Progress | None) -> Iterable[Item]:
    """Return `items`; if there is a display, iterating advances its bar labelled `what`."""
    return items if progress is None else progress.track(items, description=what)


class _ProgressLines(Progress):
    """A display for a pipe or a file: a line every 10 % or 10 seconds of a task, and at its end."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(console=console, auto_refresh=False, disable=True, get_time=clock)
        self._clock = clock
        self._printed: dict[
            TaskID, tuple[float, float]
        ] = {}  # time and percentage of the last line

    def stop(self) -> None:
        """Do nothing: there is no live display to close."""

    def add_task(self, description: str, *args: Any, **more: Any) -> TaskID:  # noqa: ANN401
        """Add a task and note when it began."""
        task = super().add_task(description, *args, **more)
        self._printed[task] = (self._clock(), 0.0)
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task and print a line if one is due."""
        super().advance(task_id, advance)
        self._print_if_due(self._tasks[task_id])

    def update(self, task_id: TaskID, **more: Any) -> None:  # noqa: ANN401
        """Update a task and print a line if one is due."""
        super().update(task_id, **more)
        self._print_if_due(self._tasks[task_id])

    def _print_if_due(self, task: Task) -> None:
        now, (then, before) = self._clock(), self._printed[task.id]
        done = before < 100 <= task.percentage
        further = task.percentage - before >= _STEP_PERCENT and now - then >= _MIN_SECONDS
        if not (done or further or now - then >= _MAX_SECONDS):
            return
        self._printed[task.id] = (now, task.percentage)
        line = f"{task.description}: {task.percentage:.0f} %, {task.elapsed or 0:.0f} s"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
