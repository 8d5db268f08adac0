"""Check a command of the documentation without running it: do it and all that it names exist?"""

import importlib
import re
import shlex
import sys
import tomllib
from contextlib import redirect_stdout, suppress
from functools import cache
from io import StringIO
from unittest.mock import patch

import typer

from server.cli.main import cli
from tests.support.documentation import ROOT

CHECKED = ("trimtab", "train-policy", "make", "python", "pip", "docker")
"""Programs whose commands `check_command` understands."""


class WrongCommandError(Exception):
    """A command of the documentation that would fail."""


def split_commands(text: str) -> list[list[str]]:
    """Return the words of each command of a shell block, without comments and assignments."""
    commands, pending = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        pending += line + "\n"
        try:
            words = shlex.split(pending, comments=True)
        except ValueError:  # a quotation goes on in the next line
            continue
        pending = ""
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            check_variable(words.pop(0).split("=")[0])
        if words:
            commands.append(words)
    if pending:
        raise WrongCommandError(f"a quotation has no end: {pending}")
    return commands


def check_block(text: str) -> None:
    """Check every command of a shell block except `curl`, which is run instead."""
    for words in split_commands(text):
        if words[0] != "curl":
            check_command(words)


def check_command(words: list[str], whole: bool = True) -> None:
    """Raise `WrongCommandError` if a command, its options or its files do not exist.

    A command in running text may be no `whole` one: some of its arguments may be missing.
    """
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "trimtab":
        _check_trimtab(arguments, whole)
    elif program == "train-policy":
        _check_trimtab([program, *arguments], whole)
    elif program == "make":
        _check_make(arguments)
    elif program == "python" and arguments[:1] == ["-m"]:
        _check_module(arguments[1:])
    elif program == "pip":
        _check_extras(arguments)
    elif program == "docker":
        _check_files([word for word in arguments if "/" in word and word.endswith(".yaml")])
    else:
        raise WrongCommandError(f"{program}: the tests of the documentation do not know it")


def check_variable(name: str) -> None:
    """Raise `WrongCommandError` if a variable of the environment is no setting."""
    if name.startswith("TRIMTAB_") and name not in _settings():
        raise WrongCommandError(f"{name} is no setting")


@cache
def _settings() -> frozenset[str]:
    page = (ROOT / "docs" / "configuration.md").read_text()
    return frozenset(re.findall(r"TRIMTAB_[A-Z_]+", page)) | {"TRIMTAB_NATIVE"}


def _check_trimtab(arguments: list[str], whole: bool) -> None:
    """Parse a `trimtab` command as it would be, and run nothing."""
    group = typer.main.get_command(cli)
    context = group.make_context("trimtab", ["pull"])
    try:
        name, command, rest = group.resolve_command(context, list(arguments))
        while hasattr(command, "resolve_command") and rest:  # a group of commands
            context = command.make_context(name, list(rest), parent=context)
            name, command, rest = command.resolve_command(context, list(rest))
        if whole and "--help" not in rest:
            command.make_context(name, rest, parent=context)
    except typer.TyperException as error:
        raise WrongCommandError(f"trimtab {' '.join(arguments)}: {error}") from error
    known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    unknown = {word for word in rest if word.startswith("--")} - known
    if unknown:
        raise WrongCommandError(f"trimtab {name} has no {', '.join(sorted(unknown))}")


def _check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{name} \?=|\$[({{]{name}\b" if is_variable else rf"^{name}:"
        if not re.search(pattern, makefile, re.MULTILINE):
            raise WrongCommandError(f"make {word}: the Makefile has no such thing")


def _check_module(arguments: list[str]) -> None:
    module, *rest = arguments
    if module == "pytest":
        return _check_files([word for word in rest if "/" in word])
    if not _is_module(module):
        raise WrongCommandError(f"python -m {module}: there is no such module")
    if module.startswith("benchmarks"):
        _check_options(module, [word for word in rest if word.startswith("--")])
    return None


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


def _check_options(module: str, options: list[str]) -> None:
    """Check options against the help of a benchmark."""
    if not options:
        return
    if not ROOT.joinpath(*module.split(".")).with_suffix(".py").is_file():
        module += ".__main__"
    out = StringIO()
    with (
        redirect_stdout(out),
        suppress(SystemExit),
        patch.object(sys, "argv", [module, "--help"]),
    ):
        importlib.import_module(module).main()
    for option in options:
        if not re.search(rf"{option}\b", out.getvalue()):
            raise WrongCommandError(f"python -m {module} has no {option}")


def _check_extras(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"trimtab\[([^\]]+)\]", " ".join(arguments)):
        for name in extra.split(","):
            if name not in project["optional-dependencies"]:
                raise WrongCommandError(f"trimtab has no extra {name!r}")


def _check_files(names: list[str]) -> None:
    for name in names:
        if not (ROOT / name.split("::")[0]).exists():
            raise WrongCommandError(f"{name} does not exist")
