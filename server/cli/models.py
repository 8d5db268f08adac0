"""The commands about models: pull, models and diagnose."""

from typing import Annotated

import typer

from server.cli.options import MODEL_HELP
from server.engine.loading.source import DEFAULT_MODEL, pull_model, resolve_model

app = typer.Typer()

_Model = Annotated[str, typer.Argument(help=MODEL_HELP)]


@app.command()
def pull(model: _Model = DEFAULT_MODEL) -> None:
    """Download what is not there yet of a model, and print where it is.

    A download that was killed goes on where it ended. A model of the hub is brought up to date.
    """
    typer.echo(pull_model(model))


@app.command()
def diagnose(model: _Model = DEFAULT_MODEL) -> None:
    """Print what a model consists of, what of it can be cut, and whether it can be served."""
    from rich.console import Console

    from pruners.architecture.diagnose import diagnose as examine
    from pruners.architecture.diagnose import render
    from server.engine.loading.load import load_outline

    Console().print(render(examine(load_outline(resolve_model(model)))))
