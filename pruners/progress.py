"""Progress bars for the offline half: a Rich display if the caller has one, else silence."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def bars() -> Progress:
    """The display of a command: what, how far, how long it took and how long it will take."""
    columns = (TextColumn("{task.description}"), BarColumn())
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn())


def tracked(items: Sequence[Item], what: str, progress: Progress | None) -> Iterable[Item]:
    """Iterates over `items`, showing them as one bar labelled `what`."""
    return items if progress is None else progress.track(items, description=what)
