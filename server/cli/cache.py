"""The command `cache`: what is kept in the cache folder."""

from datetime import datetime
from typing import Annotated

import typer

from server.engine.loading.cache_contents import cache_entries, clear_cache
from server.engine.loading.source import cache_folder

app = typer.Typer()
cache = typer.Typer(invoke_without_command=True)
app.add_typer(cache, name="cache")


@cache.callback()
def show(context: typer.Context) -> None:
    """Print what is in the cache folder: its name, what it is, its size, and its last use."""
    if context.invoked_subcommand is not None:
        return
    entries = cache_entries()
    widths = (max([4, *(len(one.name) for one in entries)]), 31)
    typer.echo(f"{'name':{widths[0]}}  {'what':{widths[1]}}  {'MB':>8}  last used")
    for one in entries:
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        typer.echo(
            f"{one.name:{widths[0]}}  {one.what:{widths[1]}}  {one.size / 1e6:>8.1f}  {used}"
        )
    total = sum(one.size for one in entries)
    typer.echo(f"{total / 1e6:.1f} MB in {cache_folder()}")


@cache.command()
def clear(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="Names, as `trimtab cache` prints them. Without: all that the next start makes "
            "again by itself, which are packed weights and what GGUF files say of themselves.",
        ),
    ] = None,
) -> None:
    """Remove things from the cache folder and print their names."""
    for name in clear_cache(names or []):
        typer.echo(f"removed {name}")
