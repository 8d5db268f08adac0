"""What `/health` reports, by the state of the engine, which is a stand-in here."""

from types import SimpleNamespace

import pytest

from server.api.readiness import Readiness


@pytest.mark.parametrize(
    ("engine", "draining", "trouble"),
    [
        ({}, False, None),
        ({"failure": "the engine died"}, False, "the engine died"),
        ({"failure": "the engine died"}, True, "the engine died"),
        ({}, True, "the server is shutting down"),
        ({"stalled_seconds": 2.5}, False, "the engine has been busy with one step for 2.5 s"),
        ({"stalled_seconds": 1.5}, False, None),
        ({"alive": False}, False, "the engine is not running"),
    ],
)
def test_the_first_trouble_is_reported(engine, draining, trouble):
    healthy = {"failure": None, "stalled_seconds": 0.0, "alive": True}
    readiness = Readiness(SimpleNamespace(**{**healthy, **engine}), stall_seconds=lambda: 2.0)
    readiness.draining = draining
    assert readiness.trouble() == trouble
