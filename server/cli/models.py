"""The commands about models: pull, models and diagnose."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pruners.support.errors import UserError
from server.cli.options import MODEL_HELP
from server.engine.loading.source import DEFAULT_MODEL, pull_model, resolve_model

if TYPE_CHECKING:
    from server.engine.loading.memory_estimate import Serving

app = typer.Typer()

_PIPED_WIDTH = 160

_Model = Annotated[str, typer.Argument(help=MODEL_HELP)]


@app.command()
def pull(model: _Model = DEFAULT_MODEL) -> None:
    """Download what is not there yet of a model, and print where it is.

    A download that was killed goes on where it ended. A model of the hub is brought up to date.
    """
    typer.echo(pull_model(model))


@app.command("models")
def list_models() -> None:
    """List the models that are here, and whether they fit into the memory that is free now."""
    from rich.console import Console
    from rich.table import Table

    from pruners.support.sizes import size_text
    from server.engine.loading.inventory import models_here, serving_here

    found = models_here()
    if not found:
        typer.echo("there are no models here; `trimtab pull` gets the default one")
        return
    serving, free = serving_here()
    table = Table(title=f"{size_text(free)} of memory are free")
    for head in ("model", "family", "files", "bits", "in memory", "longest text that fits"):
        table.add_column(
            head, justify="right" if head in ("files", "bits", "in memory") else "left"
        )
    for name, path in found.items():
        table.add_row(name, *_columns(path, serving, free))
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def _columns(path: Path, serving: "Serving", free: float) -> list[str]:
    """Return what the table says of a model beside its name."""
    from pruners.support.sizes import size_text
    from server.engine.loading.inventory import summarise

    try:
        found = summarise(path, serving, free)
    except UserError as error:
        return ["", "", "", "", f"not served: {error}"]
    fits = f"{found.tokens:,} tokens"
    if not found.fits:
        fits = f"does not fit: {size_text(found.needed - free)} too little"
    sizes = (size_text(found.file_bytes), f"{found.bits:.1f}", size_text(found.needed))
    return [found.family, *sizes, fits]


@app.command()
def diagnose(model: _Model = DEFAULT_MODEL) -> None:
    """Print what a model consists of, what of it can be cut, and whether it can be served."""
    from rich.console import Console

    from pruners.architecture.diagnose import diagnose as examine
    from pruners.architecture.diagnose import render
    from server.engine.loading.load import load_outline

    Console().print(render(examine(load_outline(resolve_model(model)))))
