"""Programs of client libraries, which run in an environment of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.testing import ServerProcess

PROGRAMS = Path(__file__).parents[1] / "clients" / "programs"
KV_TOKENS = 16_384
"""Size of the server's cache: with it given, the type of its numbers does not depend on memory."""
_PYTHON = Path(sys.prefix).with_name(".venv-clients") / "bin" / "python"
"""Beside the environment that runs the suite: what clients require would not fit into that."""
_SECONDS = 300


def run_program(program: Path, server: ServerProcess, home: Path, **variables: str) -> None:
    """Run a file of `PROGRAMS` by pytest in the clients' environment.

    `home` is an empty folder for it, `variables` are further environment variables. The test fails
    with the program's output, and is skipped where there are no clients.
    """
    if not _PYTHON.exists():
        pytest.skip("there are no client libraries; `make clients` installs them")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    }
    environment |= {"TRIMTAB_URL": server.url, "HOME": str(home), **variables}
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--tb=short", "--disable-warnings"]
    options += ["--rootdir", str(PROGRAMS), "--confcutdir", str(PROGRAMS)]
    done = subprocess.run(
        [str(_PYTHON), "-m", "pytest", *options, str(program)],
        cwd=home, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"{program.name}:\n{done.stdout[-6000:]}\n{done.stderr[-2000:]}", False)
