"""`benchmarks.front_end` in small, on a tiny model."""

from types import SimpleNamespace

import pytest

from benchmarks import front_end


def test_all_ways_are_measured_and_compared(tiny_folder):
    asked = SimpleNamespace(model=str(tiny_folder), tokens=60, repeats=1)
    found = front_end.measure(asked)
    assert all(0 < seconds < 5 for seconds in found.pop("scrapes"))
    assert all(0 <= seconds < 0.01 for seconds in found.pop("event loop"))
    assert set(found) == {"engine alone", "completions", "chats"}
    assert all(len(speeds) == 1 and min(speeds) > 0 for speeds in found.values())
    assert all(cost < 1 for cost in front_end.costs(found).values())


def test_a_refused_request_is_an_error(tiny_server):
    with pytest.raises(RuntimeError, match="400 Bad Request"):
        front_end.write_over_http(tiny_server.port, "completions", 10**6, 0)


def test_the_cost_is_the_median_of_rounds():
    found = {"engine alone": [100, 200, 100], "completions": [90, 190, 50], "chats": [100] * 3}
    assert front_end.costs(found) == pytest.approx({"completions": 0.1, "chats": 0.0})
