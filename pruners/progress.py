"""Progress bars for the offline half: a Rich display if the caller has one, else silence."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.progress import Progress

Item = TypeVar("Item")


def tracked(items: Sequence[Item], what: str, progress: Progress | None) -> Iterable[Item]:
    """Iterates over `items`, showing them as one bar labelled `what`."""
    return items if progress is None else progress.track(items, description=what)
