"""Progress for the offline half: bars on a terminal, a line now and then elsewhere, or silence."""

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
_EVERY = 10.0  # seconds, or percent if they take longer than _LEAST
_LEAST = 1.0


def progress_bars(
    console: Console | None = None, clock: Callable[[], float] = time.monotonic
) -> Progress:
    """The display of a command, on standard error unless a console is given.

    What, how far, how long it took and how long it will take.
    """
    console = console or Console(stderr=True)
    if not console.is_terminal:
        return _Lines(console, clock)
    columns = (TextColumn("{task.description}"), BarColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console)


def track(items: Sequence[Item], what: str, progress: Progress | None) -> Iterable[Item]:
    """Iterates over `items`, showing them as one bar labelled `what`."""
    return items if progress is None else progress.track(items, description=what)


class _Lines(Progress):
    """The same for a pipe or a file: a line every 10 % or 10 seconds of a task, and at its end."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        super().__init__(console=console, auto_refresh=False, disable=True, get_time=clock)
        self._clock = clock
        self._said: dict[TaskID, tuple[float, float]] = {}  # when, and at how many percent

    def stop(self) -> None:
        """Ends the display; nothing is on the screen that would have to be closed."""

    def add_task(self, description: str, *args: Any, **more: Any) -> TaskID:  # noqa: ANN401
        """Also notes when the task began."""
        task = super().add_task(description, *args, **more)
        self._said[task] = (self._clock(), 0.0)
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Also says a line if it is time."""
        super().advance(task_id, advance)
        self._say(self._tasks[task_id])

    def update(self, task_id: TaskID, **more: Any) -> None:  # noqa: ANN401
        """Also says a line if it is time."""
        super().update(task_id, **more)
        self._say(self._tasks[task_id])

    def _say(self, task: Task) -> None:
        now, (then, before) = self._clock(), self._said[task.id]
        done = before < 100 <= task.percentage
        further = task.percentage - before >= _EVERY and now - then >= _LEAST
        if not (done or further or now - then >= _EVERY):
            return
        self._said[task.id] = (now, task.percentage)
        line = f"{task.description}: {task.percentage:.0f} %, {task.elapsed or 0:.0f} s"
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)
