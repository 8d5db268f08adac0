"""A server of the default model for the programs of client libraries."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.testing import ServerProcess
from tests.support.client_programs import KV_TOKENS


@pytest.fixture(scope="session")
def clients_server(
    default_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Run a server of the default model, whose answers no shadow checks."""
    log = tmp_path_factory.mktemp("clients") / "server.log"
    settings = {"TRIMTAB_SHADOW_SHARE": "0", "TRIMTAB_KV_TOKENS": str(KV_TOKENS)}
    server = ServerProcess(log=log, **settings)
    yield server.wait()
    assert server.stop() == 0
