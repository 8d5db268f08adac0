"""`trimtab serve`, with one option for each setting."""

import gc
import inspect
import logging
import os
import socket
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from server.cli.options import UsageError
from server.engine.loading.stages import stage
from server.log_format import use_format
from server.settings import (
    Settings,
    default_text,
    option_name,
    setting_description,
    setting_groups,
)
from server.settings_sources import read_settings, unknown_variables

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

app = typer.Typer()

_METAVARS: dict[object, str] = {
    bool: "", int: "INTEGER", int | None: "INTEGER", float: "NUMBER", float | None: "NUMBER",
    Path | None: "PATH",
}  # fmt: skip
"""What stands for the value of an option in the help, by the type of the setting."""
_CONFIG_HELP = (
    "A configuration file in TOML, with the names of the settings: `max_running = 8`. Also "
    "TRIMTAB_CONFIG."
)


def serve(config: Path | None, **options: str | bool | None) -> None:
    """Serve a model over HTTP.

    Give a setting as an option (--max-running), a variable (TRIMTAB_MAX_RUNNING) or in a file.

    An option goes before a variable, and a variable before the file.
    """
    settings = read_settings(options, os.environ, config)
    use_format(settings.log_format)
    for line in unknown_variables(os.environ):
        log.warning("%s", line)
    _check_address(settings.host, settings.port)
    # Imported here, so that other commands start without the HTTP server.
    from server.http import StartupFront, connection_limiter
    from server.http import serve as run
    from server.prechecks import check_choices

    check_choices(settings)
    front = StartupFront(settings, partial(_load, settings))
    sys.exit(run(front, settings, connection_limiter(settings)))


def _load(settings: Settings) -> "FastAPI":
    """Return the application of the settings. Most of a start is spent here."""
    gc.disable()  # imports make a great deal, and hardly any garbage
    with stage("imports"):  # of PyTorch and the HTTP application
        from server.app import create_app
        from server.engine.loading.configured_model import load_configured_model
        from server.prechecks import check_parts
    gc.freeze()  # what was imported stays, so it need not be searched for garbage
    gc.enable()
    with stage("settings"):
        check_parts(settings)
    with stage("model"):
        model = load_configured_model(settings.to_model_config())
    with stage("controller"):
        app = create_app(model, settings)
    gc.collect()
    gc.freeze()  # what is loaded stays, too
    return app


def _signature() -> inspect.Signature:
    """Return the signature that Typer makes the command's options of."""
    config = typer.Option("--config", metavar="FILE", help=_CONFIG_HELP)
    parameters = [_parameter("config", Path | None, config)]
    for title, names in setting_groups().items():
        for name in names:
            kind = Settings.model_fields[name].annotation
            flag, default = option_name(name), default_text(name)
            shown_default = f" Default: {default}." if default else ""
            option = typer.Option(
                f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
                metavar=_METAVARS.get(kind, "TEXT"),
                help=setting_description(name) + shown_default,
                rich_help_panel=title,
            )
            # Values stay text, so that a wrong one is the same error wherever it comes from.
            parameters.append(_parameter(name, bool | None if kind is bool else str | None, option))
    return inspect.Signature(parameters)


def _parameter(name: str, kind: object, option: Any) -> inspect.Parameter:  # noqa: ANN401
    annotation = Annotated[kind, option]  # type: ignore[valid-type]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _check_address(host: str, port: int) -> None:
    """Raise `UsageError` before the model is loaded, if nothing can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error


serve.__signature__ = _signature()  # type: ignore[attr-defined]
app.command()(serve)
