"""Run the examples of the documentation against a server of the default model.

A block is left out only if it says so: `<!-- not run: needs a GPU -->` on the line before it.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.documentation import all_blocks, parse_page
from tests.support.documented_commands import split_commands

ADDRESS = "http://127.0.0.1:8000"
"""Where a server listens in the documentation."""

shell = [b for b in all_blocks("sh") if "curl" in b.text and b.not_run is None]
python = [b for b in all_blocks("python") if b.not_run is None]


def run_python(text, folder):
    """Run a block in a process of its own, in an empty folder, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", shell, ids=str)
def test_curl_examples_are_answered(block, documented_server):
    commands = split_commands(block.text.replace(ADDRESS, documented_server.url))
    for words in [words for words in commands if words[0] == "curl"]:
        done = subprocess.run(
            [*words, "--silent", "--show-error", "--fail-with-body", "--max-time", "60"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("block", python, ids=str)
def test_python_examples_run(block, request, tmp_path):
    text = block.text
    if ADDRESS in text:
        text = text.replace(ADDRESS, request.getfixturevalue("documented_server").url)
    run_python(text, tmp_path)


def test_a_block_that_fails_is_noticed(tmp_path):
    (block,) = parse_page(Path("page.md"), "```python\nassert 1 == 2\n```\n").blocks
    assert block.not_run is None
    with pytest.raises(AssertionError, match="assert 1 == 2"):
        run_python(block.text, tmp_path)


def test_a_block_is_left_out_only_with_a_reason():
    text = "<!-- not run: needs a GPU -->\n\n```sh\nnvidia-smi\n```\n\n```sh\nls\n```\n"
    first, second = parse_page(Path("page.md"), text).blocks
    assert (first.not_run, second.not_run) == ("needs a GPU", None)
