"""Small files of /proc and /sys, any of which may be absent, unreadable or empty."""

from pathlib import Path


def read_text(path: Path) -> str | None:
    """Return the stripped content, or None if the file cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """Return the file's single integer, or None if it cannot be read or is something else."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
