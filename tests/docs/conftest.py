"""The server that the documentation speaks of."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.testing import ServerProcess


@pytest.fixture(scope="session")
def documented_server(
    default_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Run a server of the default model with its variants, as `make serve` does."""
    log = tmp_path_factory.mktemp("documented") / "server.log"
    server = ServerProcess(log=log).wait()
    yield server
    server.stop()
