"""Runs commands as `trimtab` does, but in this process: most of their time would be imports."""

import io
import logging
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from server.cli.main import main


def trimtab(*arguments):
    """The exit code and the output of a command that comes to an end."""
    command = ["trimtab", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    environment = {"TRIMTAB_PORT": "0", **os.environ}  # a server may run beside the tests
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()  # so that the command sets its own up
    try:
        with (
            redirect_stdout(out),
            redirect_stderr(err),
            patch.object(sys, "argv", command),
            patch.dict(os.environ, environment),
        ):
            main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


def one_line(done, says):
    """Checks that a command was refused with exit code 2 and one line that says this."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("trimtab: ")]
    assert len(lines) == 1
    assert says in lines[0]
    assert "Traceback" not in done.stderr
