"""Files that are whole or not there: written under a temporary name and renamed."""

import json
import os
from collections.abc import Callable
from pathlib import Path


def replaced(path: Path, write: Callable[[Path], object]) -> Path:
    """Has `write` make a file beside `path`, and puts it in its place."""
    staged = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        write(staged)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """The same for text."""
    return replaced(path, lambda staged: staged.write_text(text))


def write_json(path: Path, value: object) -> Path:
    """The same for a value as JSON, one entry a line; what is not plain is written as its name."""
    return write_text(path, json.dumps(value, indent=1, default=str) + "\n")
