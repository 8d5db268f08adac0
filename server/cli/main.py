"""The `trimtab` command: its entry points, and how errors are shown."""

import logging
import os
import sys
from importlib import metadata
from typing import Annotated

import typer

from pruners.support.errors import UserError
from server.cli.artefacts import app as artefact_commands
from server.cli.cache import app as cache_commands
from server.cli.evaluation import app as evaluation_commands
from server.cli.keys import app as key_commands
from server.cli.models import app as model_commands
from server.cli.policies import app as policy_commands
from server.cli.serve import app as serve_command
from server.cli.variants import app as variant_commands

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"trimtab {metadata.version('trimtab')}")
        raise typer.Exit


@cli.callback()
def common_options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """An LLM inference server that shrinks the model instead of failing the user."""


for commands in (
    serve_command,
    model_commands,
    cache_commands,
    variant_commands,
    evaluation_commands,
    policy_commands,
    artefact_commands,
    key_commands,
):
    cli.add_typer(commands)


def train_policy_main() -> None:
    """Run `trimtab train-policy`: the entry point of the command `train-policy`."""
    sys.argv.insert(1, "train-policy")
    main()


def main() -> None:
    """Run the command. An error of the user is one line on stderr, with exit code 2."""
    if not sys.stderr.isatty():  # progress bars of Hugging Face would overwrite their line
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for name in ("httpx", "httpx2"):  # they log every request
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        sys.exit(cli(standalone_mode=False))  # 130 after an interruption, else None
    except typer.TyperException as error:
        _exit_with_error(getattr(error, "format_message", error.__str__)())
    except typer.Abort:
        sys.exit(130)
    except UserError as error:
        _exit_with_error(str(error))


def _exit_with_error(message: str) -> None:
    if message:  # without arguments, the command has shown its help instead
        print(f"trimtab: {message}", file=sys.stderr)
    sys.exit(2)
