"""`/openapi.json` tells the truth: Schemathesis tries a tiny model's server, which has keys.

`FUZZ_CASES=5000` tries that many cases, in all phases; without, some hundred in one.
"""

import os

import httpx
import pytest

from server.testing import ServerProcess
from tests.support.client_programs import PROGRAMS, run_program

KEY = "fuzz"


@pytest.fixture(scope="module")
def keyed_server(tiny_folder, tmp_path_factory):
    """A tiny server whose answers are short, so that thousands of requests take minutes."""
    log = tmp_path_factory.mktemp("fuzz") / "server.log"
    server = ServerProcess(
        "--model", str(tiny_folder), "--api-key", KEY, "--context", "256", "--max-answers", "4",
        log=log, TRIMTAB_THREADS="1",
    )  # fmt: skip
    yield server.wait()
    assert server.stop() == 0


@pytest.mark.slow
def test_schemathesis_finds_nothing(keyed_server, tmp_path):
    cases = int(os.environ.get("FUZZ_CASES", "300"))
    headers = {"x-api-key": KEY}
    document = httpx.get(f"{keyed_server.url}/openapi.json", headers=headers).json()
    operations = sum(len(operations) for operations in document["paths"].values())
    run_program(
        PROGRAMS / "schemathesis_cases.py", keyed_server, tmp_path,
        FUZZ_CASES=str(cases), FUZZ_OPERATIONS=str(operations), FUZZ_KEY=KEY,
        FUZZ_PHASES="coverage,fuzzing" if "FUZZ_CASES" in os.environ else "fuzzing",
    )  # fmt: skip
    assert "Traceback" not in keyed_server.log()
