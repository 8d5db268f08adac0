"""The `trimtab` command."""

import gc
import logging
import os
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from pruners.support.errors import UserError
from server.cli.policies import policy as policy_commands
from server.cli.variants import MODEL_HELP, UsageError, offline
from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from server.settings import read_settings, unknown_variables

log = logging.getLogger(__name__)

cli = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"trimtab {metadata.version('trimtab')}")
        raise typer.Exit


@cli.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """An LLM inference server that shrinks the model instead of failing the user."""


cli.add_typer(offline)
cli.add_typer(policy_commands)


@cli.command()
def fetch(model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL) -> None:
    """Obtain a model and print where it lies."""
    typer.echo(resolve_model(model))


@cli.command()
def serve(
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    artefact: Annotated[Path | None, typer.Option(help="A folder by `trimtab build`.")] = None,
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(help="Default 8000.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    weights: Annotated[str | None, typer.Option(help="auto, fp32, bf16, int8 or int4.")] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="rule, random, static:VARIANT, refusing:VARIANT or a trained folder."),
    ] = None,
    force: Annotated[bool, typer.Option(help="Serve a policy that is not promoted.")] = False,
    max_running: Annotated[int | None, typer.Option(help="Answers written at once.")] = None,
    max_waiting: Annotated[int | None, typer.Option(help="Requests queued before 503.")] = None,
    threads: Annotated[int | None, typer.Option(help="Processor threads of the model.")] = None,
    context: Annotated[int | None, typer.Option(help="Longest prompt and answer.")] = None,
) -> None:
    """Serve a model over HTTP. Every setting is also a TRIMTAB_* environment variable."""
    given: dict[str, Any] = {
        "model": model,
        "artefact": artefact,
        "host": host,
        "port": port,
        "device": device,
        "weights": weights,
        "policy": policy,
        "force": force or None,
        "max_running": max_running,
        "max_waiting": max_waiting,
        "threads": threads,
        "context": context,
    }
    settings = read_settings(given, os.environ)
    for line in unknown_variables(os.environ):
        log.warning("%s", line)
    _check_free(settings.host, settings.port)
    from server.prechecks import check_settings

    check_settings(settings)
    # Imported here: other commands start without the HTTP stack.
    from server.app import create_app
    from server.engine.loading.configured_model import load_configured_model
    from server.http import connection_limiter
    from server.http import serve as run

    connections = connection_limiter(settings)

    app = create_app(load_configured_model(settings.to_model_config()), settings)
    gc.collect()
    gc.freeze()  # what is loaded stays: it need not be searched for garbage ever again
    log.info("serving %s on http://%s:%s", settings.model, settings.host, settings.port)
    sys.exit(run(app, settings, connections))


@cli.command()
def diagnose(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)] = DEFAULT_MODEL,
) -> None:
    """Print what a model consists of, what of it can be cut, and whether it can be served."""
    from rich.console import Console

    from pruners.architecture.diagnose import diagnose as examine
    from pruners.architecture.diagnose import render
    from server.engine.loading.load import load_outline

    Console().print(render(examine(load_outline(resolve_model(model)))))


def _check_free(host: str, port: int) -> None:
    """Fails before the model is loaded, not after."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}") from error


def train_policy_main() -> None:
    """Entry point of `train-policy`, the same as `trimtab train-policy`."""
    sys.argv.insert(1, "train-policy")
    main()


def main() -> None:
    """Entry point: user errors are one line on stderr and exit code 2."""
    if not sys.stderr.isatty():  # their bars return the carriage; ours say lines then
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        sys.exit(cli(standalone_mode=False))  # 130 after an interruption, else None
    except typer.TyperException as error:
        _fail(getattr(error, "format_message", error.__str__)())
    except typer.Abort:
        sys.exit(130)
    except UserError as error:
        _fail(str(error))


def _fail(message: str) -> None:
    if message:  # a command without arguments has shown its help instead
        print(f"trimtab: {message}", file=sys.stderr)
    sys.exit(2)
