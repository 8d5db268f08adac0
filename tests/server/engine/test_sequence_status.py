"""What the controller is told of shallow tokens: those that are waiting, and those of a step."""

import asyncio
import time

from controller.engine_status import shallow_part
from pruners.kv import PageSelection, make_eviction
from server.engine.engine import Engine
from server.engine.options import EngineOptions
from server.engine.sequence import GenerationRequest
from server.engine.sequence_status import status_of
from tests.support.driving import TOKENIZER, run, runner_of, submit, variants_of, weights_of
from tests.support.readers import DEEPER, SHALLOW, SubstitutingDecoder
from tests.support.tiny import tiny_model

PROMPT = [(31 * i) % 384 for i in range(75)]  # 66 of them are shallow: 4 to 69
WEIGHTS = weights_of(tiny_model())
BASE = variants_of(WEIGHTS)["base"]


def fresh(**limits):
    return runner_of(WEIGHTS, kind=SubstitutingDecoder, **limits)


def test_shallow_tokens_of_a_step_are_rows_of_their_own():
    runner, records = fresh(step_tokens=32), []
    submit(runner, PROMPT, BASE, 3, reader=SHALLOW)
    while runner.step(records.append):
        pass
    lower = shallow_part(BASE, 1)
    assert [record.rows for record in records] == [
        ((BASE, 4, 32), (lower, 28, 0)),  # what is cached is read once
        ((lower, 32, 64),),
        ((BASE, 5, 75), (lower, 6, 0)),
        ((BASE, 1, 76),),
        ((BASE, 1, 77),),
    ]


def test_readers_of_one_depth_share_rows_and_others_do_not():
    runner, records = fresh(step_tokens=256), []
    for reader in (SHALLOW, SHALLOW, DEEPER, None):
        submit(runner, PROMPT[:40], BASE, 1, reader=reader)
    runner.step(records.append)
    rows = {variant: tokens for variant, tokens, _ in records[0].rows}
    assert rows == {BASE: 3 * 9 + 40, shallow_part(BASE, 1): 62, shallow_part(BASE, 2): 31}


def test_a_prompt_that_is_only_read_counts_as_it_was_read():
    runner, records = fresh(step_tokens=256), []
    submit(runner, PROMPT, BASE, 0, reader=SHALLOW)
    runner.step(records.append)
    assert {v.name: tokens for v, tokens, _ in records[0].rows} == {"base": 9, "base/1": 66}


def test_what_is_left_to_read_says_how_much_of_it_is_shallow():
    runner = fresh(step_tokens=32)
    sequence, _ = submit(runner, PROMPT, BASE, 3, reader=SHALLOW)
    found = []
    while runner.step():
        status = status_of(sequence, running=True)
        found.append((status.prompt_left, status.shallow_left))
    assert found[:4] == [(43, 38), (11, 6), (0, 0), (0, 0)]


def test_a_waiting_prompt_tells_it_by_its_first_estimate(monkeypatch):
    runner = fresh(capacity=1024)
    submit(runner, PROMPT[:40], BASE, 4)
    run(runner)
    monkeypatch.setattr(runner, "step", lambda on_step: bool(time.sleep(0.01)))
    engine = Engine(runner, TOKENIZER, EngineOptions(9, 1000))
    prompt = tuple(PROMPT)

    async def ask() -> None:
        engine.start()
        for more in ({}, {"reader": SHALLOW}, {"reader": SHALLOW, "kv_budget": make_eviction(32)}):
            reusable = engine.reusable(prompt)["base", None]
            request = GenerationRequest("one", prompt, 4, BASE, reusable=reusable, **more)
            engine.submit(request, asyncio.Queue())

    try:
        asyncio.run(ask())
        found = [(s.prompt_left, s.shallow_left, s.depth) for s in engine.status().sequences]
    finally:
        engine.stop()
    assert found == [(35, 0, 0), (35, 30, 1), (75, 66, 1)]


def test_a_budget_that_selects_pages_limits_what_is_attended_to_and_not_what_is_cached():
    runner, records = fresh(step_tokens=256), []
    sequence, _ = submit(runner, PROMPT, BASE, 3, kv_budget=PageSelection(64))
    while runner.step(records.append):
        if not sequence.ended:
            status = status_of(sequence, running=True)
            assert status.cached == sequence.computed
            assert status.cache_limit == len(PROMPT) + 3
    assert [record.rows for record in records] == [
        ((BASE, 75, 75),), ((BASE, 1, 64),), ((BASE, 1, 64),)
    ]  # fmt: skip
