"""What other threads let the engine's thread do between two steps."""

import pytest

from server.engine.step_actions import StepActions


def test_actions_run_in_order_and_say_how_they_went():
    actions, done = StepActions(), []
    first = actions.add(lambda: done.append(1))
    second = actions.add(lambda: done.append(1 / 0))
    third = actions.add(lambda: done.append(3))
    assert not first.done()
    actions.run()
    assert done == [1, 3]
    assert first.result(0) is None
    assert third.result(0) is None
    with pytest.raises(ZeroDivisionError):
        second.result(0)
    actions.run()
    assert done == [1, 3], "each once"


def test_an_engine_that_ended_cancels_them():
    actions, done = StepActions(), []
    waiting = actions.add(lambda: done.append(1))
    actions.close()
    late = actions.add(lambda: done.append(2))
    actions.run()
    assert waiting.cancelled()
    assert late.cancelled()
    assert done == []
