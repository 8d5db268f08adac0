"""Schemathesis sends what `/openapi.json` allows, and what it forbids: all checks hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

REJECTED = ("400", "401", "403", "404", "405", "413", "415")
"""What wrong values may be answered with: 413 where the body gets too large by them."""
SEED = 27


def test_the_document_tells_the_truth(url, tmp_path):
    cases, operations = int(os.environ["FUZZ_CASES"]), int(os.environ["FUZZ_OPERATIONS"])
    phases = os.environ["FUZZ_PHASES"]
    drawn = cases // 4 if "coverage" in phases else cases  # coverage alone makes thousands
    statuses = ", ".join(f'"{status}"' for status in REJECTED)
    config = tmp_path / "schemathesis.toml"
    config.write_text(f"[checks.negative_data_rejection]\nexpected-statuses = [{statuses}]\n")
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
        *("run", f"{url}/openapi.json", "--phases", phases),
        *("--header", f"Authorization: Bearer {os.environ['FUZZ_KEY']}", "--checks", "all"),
        *("--exclude-checks", "positive_data_acceptance"),  # the hooks have it
        *("--max-examples", str(max(1, drawn // operations)), "--seed", str(SEED)),
        *("--continue-on-failure", "--no-shrink", "--request-timeout", "60", "--no-color"),
    ]
    hooks = {"SCHEMATHESIS_HOOKS": str(Path(__file__).with_name("schemathesis_hooks.py"))}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **hooks}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) >= cases, done.stdout[-1000:]
