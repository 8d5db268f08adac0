"""The two minutes that the page's charts begin with."""

import asyncio
from math import exp
from types import SimpleNamespace

import pytest

from server.api.status_history import FIELDS, StatusHistory, kept_quality
from telemetry.snapshot import Snapshot, missing, present


def answer(age, loss, finish_reason="stop", now=100.0):
    return {"time": now - age, "predicted_loss": loss, "finish_reason": finish_reason}


def history(snapshot, recent=()):
    return StatusHistory(lambda: SimpleNamespace(running=2, waiting=9), lambda: snapshot, recent)


def test_a_sample_has_what_there_is_a_reading_of():
    snapshot = Snapshot(
        0.0,
        cpu_utilization_ratio=missing("psutil", "no such file"),
        memory_total_bytes=present(8.0, "psutil"),
        memory_available_bytes=present(2.0, "psutil"),
    )
    sample = dict(zip(FIELDS, history(snapshot).sample(), strict=True))
    assert sample["cpu"] is None
    assert sample["memory"] == 0.75
    assert (sample["running"], sample["waiting"], sample["quality"]) == (2, 9, None)


def test_quality_is_the_mean_of_the_answers_of_the_last_ten_seconds():
    recent = [answer(1, 0.0), answer(2, 1.0), answer(3, None), answer(4, 0.5, "refused")]
    recent.append(answer(11, 5.0))
    assert kept_quality(recent, 100.0) == pytest.approx((1 + exp(-1)) / 2)
    assert kept_quality([answer(11, 0.0)], 100.0) is None


def test_samples_are_taken_while_the_server_runs_and_no_longer(monkeypatch):
    monkeypatch.setattr("server.api.status_history.PERIOD_SECONDS", 0)
    kept = history(Snapshot(0.0))

    async def run():
        kept.start()
        await asyncio.sleep(0.2)
        kept.stop()
        count = len(kept.to_json()["samples"])
        await asyncio.sleep(0.02)
        return count

    count = asyncio.run(run())
    assert count == 120, "two minutes of one a second"
    assert len(kept.to_json()["samples"]) == count
