"""Small files of /proc and /sys, any of which may be absent, unreadable or empty."""

from pathlib import Path


def read_text(path: Path) -> str | None:
    """The stripped content, or None where the file cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The file's single integer, or None where it cannot be read or is something else."""
    text = read_text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None
