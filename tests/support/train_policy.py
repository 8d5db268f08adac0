"""Runs commands in this process, and interrupts them, for tests of profiles and trainings."""

from pathlib import Path
from typing import NoReturn

import pytest
import typer

from pruners.support.errors import UserError
from server.cli.main import cli


class KilledError(Exception):
    """Stands for a signal that ends a command."""


def killed(*rest: object) -> NoReturn:
    """Replace a function, so that the command ends where it would be called."""
    raise KilledError


def run(*arguments: object) -> None:
    """Run `trimtab` with these arguments; its errors are raised."""
    cli([str(argument) for argument in arguments], standalone_mode=False)


def train_policy_refused(says: str, *arguments: object) -> None:
    """Check that `train-policy` is refused with one line that says this."""
    with pytest.raises((UserError, typer.TyperException)) as error:
        run("train-policy", *arguments)
    message = getattr(error.value, "format_message", error.value.__str__)()
    assert says in message
    assert "\n" not in message


def contents(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
