"""What `/health` reports, by the state of the engine, which is a stand-in here."""

from types import SimpleNamespace

import pytest

from server.api.readiness import Readiness


@pytest.mark.parametrize(
    ("engine", "draining", "state", "trouble"),
    [
        ({}, False, "ready", None),
        ({"failure": "the engine died"}, False, "failed", "the engine died"),
        ({"failure": "the engine died"}, True, "failed", "the engine died"),
        ({}, True, "draining", "the server is shutting down"),
        ({"stalled_seconds": 2.5}, False, "stalled", "the engine has been busy with one step for"),
        ({"stalled_seconds": 1.5}, False, "ready", None),
        ({"restarting": True, "alive": False}, False, "restarting", "the engine broke and starts"),
        ({"alive": False}, False, "failed", "the engine is not running"),
    ],
)
def test_the_first_trouble_is_reported(engine, draining, state, trouble):
    healthy = {"failure": None, "stalled_seconds": 0.0, "alive": True, "restarting": False}
    readiness = Readiness(SimpleNamespace(**{**healthy, **engine}), stall_seconds=lambda: 2.0)
    readiness.draining = draining
    assert readiness.state == state
    found = readiness.trouble()
    assert found is None if trouble is None else found.startswith(trouble)
