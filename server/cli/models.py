"""The commands about models: fetch and diagnose."""

from typing import Annotated

import typer

from server.cli.options import MODEL_HELP, Model
from server.engine.loading.source import DEFAULT_MODEL, resolve_model

app = typer.Typer()


@app.command()
def fetch(model: Model = DEFAULT_MODEL) -> None:
    """Download or convert a model if it is not there yet, and print its folder."""
    typer.echo(resolve_model(model))


@app.command()
def diagnose(model: Annotated[str, typer.Argument(help=MODEL_HELP)] = DEFAULT_MODEL) -> None:
    """Print what a model consists of, what of it can be cut, and whether it can be served."""
    from rich.console import Console

    from pruners.architecture.diagnose import diagnose as examine
    from pruners.architecture.diagnose import render
    from server.engine.loading.load import load_outline

    Console().print(render(examine(load_outline(resolve_model(model)))))
