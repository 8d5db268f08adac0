"""Where the server is: what programs of all clients need."""

import json
import os
import urllib.request

import pytest


@pytest.fixture(scope="session")
def url() -> str:
    """Return the server's address, without a slash at its end."""
    return os.environ["TRIMTAB_URL"]


@pytest.fixture(scope="session")
def model(url: str) -> str:
    """Return the name of the served model."""
    with urllib.request.urlopen(f"{url}/v1/models", timeout=30) as response:
        return json.load(response)["data"][0]["id"]
