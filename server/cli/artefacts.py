"""The commands about what is learned: status, and artefact pack and unpack."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.options import Model, UsageError
from server.engine.loading.artefact_lookup import likely_artefact
from server.engine.loading.source import DEFAULT_MODEL, model_name, resolve_model

app = typer.Typer()
artefact_commands = typer.Typer(help="Share artefacts as single files.", no_args_is_help=True)
app.add_typer(artefact_commands, name="artefact")

_SECONDS = 10.0


@app.command()
def status(
    url: Annotated[
        str, typer.Option(help="Address of the running server.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(envvar="TRIMTAB_API_KEY", help="The server's API key, if any.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print all that the server says, as JSON.")
    ] = False,
) -> None:
    """Ask a running server what it serves, how busy it is, and what it is learning."""
    found = _fetch(url.rstrip("/") + "/trimtab/status", api_key)
    typer.echo(json.dumps(found, indent=1) if as_json else "\n".join(status_lines(found)))


@artefact_commands.command()
def pack(
    file: Annotated[Path, typer.Argument(help="Archive to write, such as mine.zip.")],
    model: Model = DEFAULT_MODEL,
    artefact: Annotated[
        Path | None,
        typer.Option(help="Folder with the artefact. Without: the model's own, by its name."),
    ] = None,
) -> None:
    """Write an artefact into one file, to be shared."""
    from server.jobs.share_artefact import pack_artefact

    folder = artefact or likely_artefact(model_name(model))
    if folder is None:
        raise UsageError(
            f"there is no artefact of {model} yet; `trimtab serve` learns one, or name a folder "
            "with --artefact"
        )
    packed = pack_artefact(folder, file)
    typer.echo(f"{file}: the artefact of {packed.model_name} ({packed.fingerprint})")


@artefact_commands.command()
def unpack(
    file: Annotated[Path, typer.Argument(help="Archive by `trimtab artefact pack`.")],
    model: Annotated[
        str | None,
        typer.Option(help="The model that it has to be for. Without: whichever it is for."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the artefact that the model has.")
    ] = False,
) -> None:
    """Check a packed artefact, and put it where the server looks for its model's."""
    from server.jobs.share_artefact import unpack_artefact

    fingerprint = None if model is None else _fingerprint(model)
    artefact, folder = unpack_artefact(file, fingerprint, replace)
    typer.echo(
        f"{folder}: {len(artefact.variants)} variants and {len(artefact.readers)} readers of "
        f"{artefact.model_name}"
    )


def status_lines(found: dict[str, Any]) -> list[str]:
    """Return what `/trimtab/status` says, as lines for people."""
    load, learning = found["load"], found["learning"]
    names = [one["name"] for one in found["variants"]]
    readers = [one["name"] for one in found["readers"]]
    lines = [
        f"model     {found['model']}, policy {found['policy']}",
        f"load      {load['running']} running, {load['waiting']} waiting, "
        f"{100 * load['kv_ratio']:.0f} % of the KV cache",
        f"variants  {', '.join(names)}",
        f"readers   {', '.join(readers) or 'none'}",
        f"learning  {learning['state']}" + (f": {learning['reason']}" * bool(learning["reason"])),
    ]
    for stage in learning["stages"] if learning["state"] != "off" else ():
        step = f", {learning['step'].lower()} {100 * learning['progress']:.0f} %"
        is_now = stage["state"] == "now" and learning["step"]
        lines.append(f"          {stage['state']:<5}  {stage['title']}{step if is_now else ''}")
    if learning["next_start"]:
        lines.append(f"          served after the next start: {', '.join(learning['next_start'])}")
    return lines


def _fetch(url: str, api_key: str | None) -> dict[str, Any]:
    """Return the JSON object at an address. Raises `UsageError`."""
    first = api_key and api_key.partition(",")[0]  # the variable may hold several
    headers = {"Authorization": f"Bearer {first}"} if first else {}
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            found = json.loads(response.read())
    except urllib.error.HTTPError as error:
        raise UsageError(f"{url}: {_reason(error)}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(f"no server of Trimtab at {url}: {reason}") from error
    if not isinstance(found, dict) or "learning" not in found:
        raise UsageError(f"no server of Trimtab at {url}")
    return found


def _reason(error: urllib.error.HTTPError) -> str:
    """Return what a server says of an error: without its key, or while it loads."""
    if error.code == 401:
        return "the server needs its API key; give --api-key"
    try:
        return str(json.loads(error.read())["error"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"status {error.code}"


def _fingerprint(model: str) -> str:
    from server.engine.loading.checkpoint import open_checkpoint

    return open_checkpoint(resolve_model(model)).fingerprint()
