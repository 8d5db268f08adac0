"""Times of answers, against sums by hand."""

from types import SimpleNamespace

import pytest

from server.api.answer_timing import AnswerTiming


def _sequence(arrived, started=None, first=None, last=None, tokens=0):
    return SimpleNamespace(
        arrived=arrived, started_at=started, first_token_at=first, last_token_at=last,
        output=[0] * tokens,
    )  # fmt: skip


def test_an_answers_parts_follow_each_other():
    timing = AnswerTiming.of([_sequence(10.0, 10.5, 11.25, 13.25, 5)])
    assert (timing.waited, timing.reading, timing.ttft) == (0.5, 0.75, 1.25)
    assert (timing.tpot, timing.writing) == (0.5, 2.0)
    assert timing.disclosure() == {
        "measured_queue_ms": 500.0, "measured_reading_ms": 750.0, "measured_ttft_ms": 1250.0,
        "measured_tpot_ms": 500.0, "measured_writing_ms": 2000.0,
    }  # fmt: skip


def test_of_several_answers_the_first_start_and_token_and_the_last_token_count():
    early, late = _sequence(1.0, 2.0, 3.0, 4.0, 5), _sequence(1.5, 3.0, 5.0, 8.0, 3)
    timing = AnswerTiming.of([late, early])
    assert (timing.waited, timing.ttft, timing.writing) == (1.0, 2.0, 5.0)
    assert timing.tpot == pytest.approx((1.0 + 3.0) / (4 + 2))


@pytest.mark.parametrize(
    ("sequence", "told"),
    [
        (_sequence(1.0), set()),
        (_sequence(1.0, 2.0), {"measured_queue_ms"}),
        (_sequence(1.0, 2.0, 3.0, 3.0, 1), {"measured_tpot_ms"}),
    ],
)
def test_what_was_not_reached_is_left_out(sequence, told):
    found = set(AnswerTiming.of([sequence]).disclosure())
    if sequence.output:  # one token has no time per token, but all the rest
        assert found.isdisjoint(told)
        assert len(found) == 4
    else:
        assert found == told
