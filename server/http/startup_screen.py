"""What a start says: to a person at a terminal in columns, else to the log line by line."""

import logging
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from typing import TYPE_CHECKING

from pruners.support.sizes import size_text
from server.engine.loading.stages import log_stage
from server.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger("trimtab")

_BODY = '{"messages": [{"role": "user", "content": "Name the largest planet."}]}'
_EVERY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # addresses that mean all of them
_WIDTH = 10  # of a title, in a terminal


class StartupScreen:
    """Tells the stages of a start, and what is served in the end.

    A person sees them if standard error is a terminal. Colours follow `NO_COLOR` and `TERM`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._console = _console() if sys.stderr.isatty() else None

    def begin(self, port: int) -> None:
        """Say that the port is bound, and what is loaded."""
        if self._console is not None:
            version, model = metadata.version("trimtab"), self._settings.model
            self._print(f"[bold]Trimtab {version}[/] loads {_plain(model)}\n")
            self._row("port", f"{self._settings.host}:{port}, which says 503 until it is loaded")

    def stage_ended(self, name: str, seconds: float, depth: int) -> None:
        """Say how long a stage took; those within another have a `depth` above 0."""
        if self._console is None:
            log_stage(name, seconds, depth)
        else:
            self._row("  " * depth + name, f"{seconds:.2f} s", style="dim" if depth else "")

    def ready(self, summary: Mapping[str, str], port: int) -> None:
        """Say what is served, where, and how to ask it."""
        import psutil  # loaded by now

        process = psutil.Process()
        seconds, memory = time.time() - process.create_time(), process.memory_info().rss
        address = self.address(port)
        rows = {**summary, "memory": f"{size_text(memory)} in use by this process"}
        rows |= {"page": f"{address}/", "API": f"{address}/v1"}
        if self._console is None:
            log.info("ready %.1f s after the start", seconds)
            for title, text in rows.items():
                log.info("%s: %s", title, text)
            log.info("try: %s", " ".join(self.example(address)))
            return
        self._print(f"\n[bold green]Ready[/] {seconds:.1f} s after the start\n")
        for title, text in rows.items():
            self._row(title, text)
        self._print("\nTry it:\n")
        self._print("  " + _plain(" \\\n    ".join(self.example(address))))
        self._print("\n[dim]Ctrl+C stops the server.[/]\n")

    def address(self, port: int) -> str:
        """Return the address by which this machine reaches the server."""
        host = _EVERY.get(self._settings.host, self._settings.host)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def example(self, address: str) -> list[str]:
        """Return the parts of a command that asks a question, without a key's text."""
        parts = [f"curl {address}/v1/chat/completions", "-H 'Content-Type: application/json'"]
        if self._settings.api_key or self._settings.api_key_file:
            parts.append("-H 'Authorization: Bearer KEY'")
        return [*parts, f"-d '{_BODY}'"]

    def _row(self, title: str, text: str, style: str = "") -> None:
        line = f"  {_plain(title):<{_WIDTH}}  {_plain(text)}"
        self._print(f"[{style}]{line}[/]" if style else line)

    def _print(self, line: str) -> None:
        assert self._console is not None
        with suppress(OSError):  # the terminal was closed, which ends no server
            self._console.print(line, highlight=False, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console  # imported late: most servers start without a terminal

    return Console(stderr=True)


def _plain(text: str) -> str:
    """Return a text whose brackets are no markup."""
    return text.replace("[", r"\[")
