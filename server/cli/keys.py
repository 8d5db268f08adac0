"""The command `key`: a new API key, and the line for the file of keys."""

import secrets
from typing import Annotated

import typer

from server.api.access.keys import hashed_key, parse_scopes
from server.cli.options import UsageError

app = typer.Typer()

_BYTES = 32


@app.command()
def key(
    scopes: Annotated[
        str,
        typer.Option(help="What it opens: infer, metrics, admin; several separated by commas."),
    ] = "infer",
) -> None:
    """Print a new API key, and the line for the file of --api-key-file that holds its hash."""
    try:
        parse_scopes(scopes)
    except ValueError as error:
        raise UsageError(f"--scopes: {error}") from error
    made = f"tk-{secrets.token_urlsafe(_BYTES)}"
    typer.echo(f"{made}\n{hashed_key(made)} {scopes}")
