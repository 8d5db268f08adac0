"""What the service hands on to the controller, the engine and the log, all stand-ins here."""

import asyncio
from dataclasses import replace

import pytest

from policies import Action, Reason
from pruners.reading.reader import FULL
from server.api.caller import Caller
from server.api.errors import ApiError
from server.api.prompt.processor import TokenizedPrompt
from server.api.request_builder import ParsedRequest
from server.api.schemas import CompletionBody
from server.engine.admission import InvalidRequestError
from server.engine.engine import QueueFullError
from server.engine.sequence import Delta, FinishReason
from tests.support.service import (
    CACHED,
    StandInController,
    StandInEngine,
    parsed_request,
    service_of,
)


def test_each_prompt_brings_what_is_cached_of_it_for_the_chosen_variant():
    engine, controller = StandInEngine(), StandInController()
    service = service_of(engine, controller)
    prompts = [TokenizedPrompt(list(range(length)), "x" * length) for length in (2, 3, 1)]
    service.start(ParsedRequest(prompts, CompletionBody(prompt="", n=2), 4), Caller("request"))
    assert [request.reusable for request in engine.requests] == [2, 2, 3, 3, 0, 0]
    assert controller.arrival.reusable == CACHED[3], "of the longest prompt"
    assert controller.arrival.prompt_tokens == 3
    assert controller.arrival.full_from == {"read-70": 3}


@pytest.mark.parametrize(
    ("body", "max_tokens", "prompt_tokens"),
    [
        ({"logit_bias": {"100": 1}}, 4, 2),
        ({"stop_token_ids": [100]}, 4, 2),
        ({"min_tokens": 5}, 4, 2),
        ({"n": 9}, 4, 2),
        ({"trimtab": {"variant": "none"}}, 4, 2),
        ({"trimtab": {"read": "none"}}, 4, 2),
        ({"trimtab": {"kv_budget": 47}}, 4, 2),  # which holds no page besides first and last
        ({}, 63, 2),
        ({}, None, 64),
        ({}, 4, 0),
    ],
)
def test_nothing_is_decided_for_an_invalid_request(body, max_tokens, prompt_tokens):
    engine, controller = StandInEngine(), StandInController()
    service = service_of(engine, controller)
    with pytest.raises(ApiError) as raised:
        service.start(parsed_request(prompt_tokens, max_tokens, **body), Caller("request"))
    assert raised.value.status == 400
    assert (controller.decisions, engine.requests) == (0, [])
    assert (service.request_log.decisions, service.request_log.ends) == (0, [])


def test_the_engine_gets_the_reader_of_the_action_and_what_is_cached_for_it():
    action = Action("base", reader="read-70")
    engine = StandInEngine()
    service_of(engine, StandInController(action=action)).start(parsed_request(2), Caller("request"))
    (request,) = engine.requests
    assert (request.reader, request.reusable) == ("a reader", 2)


@pytest.mark.parametrize(
    ("hints", "scored", "reader", "pinned"),
    [
        ({}, False, None, None),
        ({"read": "read-70"}, False, "read-70", None),
        ({"read": "full"}, False, FULL, None),
        (
            {"read": "read-70", "variant": "small"},
            False,
            "read-70",
            Action("small", None, "read-70"),
        ),
        ({"read": "full", "kv_budget": 64}, False, FULL, Action("base", 64)),
        ({}, True, FULL, None),
        ({"read": "full"}, True, FULL, None),
    ],
)
def test_the_controller_is_told_how_the_prompt_is_to_be_read(hints, scored, reader, pinned):
    controller = StandInController()
    parsed = replace(parsed_request(trimtab=hints), prompt_logprobs=0 if scored else None)
    service_of(StandInEngine(), controller).start(parsed, Caller("request"))
    preferences = controller.arrival.preferences
    assert (preferences.reader, preferences.pinned) == (reader, pinned)


@pytest.mark.parametrize(
    ("reader", "scored", "said"), [("deep", False, "full, read-70"), ("read-70", True, "in full")]
)
def test_a_reader_that_cannot_be_had_is_named_with_what_can(reader, scored, said):
    parsed = replace(
        parsed_request(trimtab={"read": reader}), prompt_logprobs=0 if scored else None
    )
    with pytest.raises(ApiError, match=said) as raised:
        service_of(StandInEngine(), StandInController()).start(parsed, Caller("request"))
    assert (raised.value.status, raised.value.param) == (400, "trimtab.read")
    assert f"'{reader}'" in raised.value.message


@pytest.mark.parametrize(
    ("error", "status"),
    [(InvalidRequestError("no token 7"), 400), (QueueFullError("full"), 503), (KeyError(1), None)],
)
def test_a_failed_submission_is_one_refusal(error, status):
    engine = StandInEngine(error)
    service = service_of(engine, StandInController())
    with pytest.raises(ApiError if status else KeyError) as raised:
        service.start(parsed_request(n=2), Caller("request"))
    assert (service.request_log.decisions, service.request_log.ends) == (1, ["refused"])
    assert status is None or raised.value.status == status


@pytest.mark.parametrize("reason", [Reason.LATE, Reason.FLOOR])
def test_a_refusal_by_the_controller_is_logged_once_and_nothing_is_submitted(reason):
    engine = StandInEngine()
    service = service_of(engine, StandInController(reason))
    with pytest.raises(ApiError) as raised:
        service.start(parsed_request(), Caller("request"))
    assert (raised.value.status, raised.value.retry_after) == (503, 7.0)
    assert service.request_log.ends == ["refused"]
    assert engine.requests == []


@pytest.mark.parametrize("read_first", [False, True])
def test_each_answer_has_one_end_however_often_the_request_is_closed(read_first):
    async def serve():
        engine = StandInEngine()
        service = service_of(engine, StandInController())
        active = service.start(parsed_request(n=2), Caller("request"))
        first, second = engine.generations
        if read_first:
            await active.inbox.put((first, Delta("a")))
            await active.inbox.put((first, Delta(finish_reason=FinishReason.STOP)))
            deltas = service.deltas(active)
            received = [await anext(deltas) for _ in range(2)]
            assert [index for index, _ in received] == [0, 0]
            await deltas.aclose()
        service.close(active)
        service.close(active)
        assert service.request_log.ends == (["stop", "abort"] if read_first else ["abort"] * 2)
        assert (first.cancelled, second.cancelled) == (not read_first, True)

    asyncio.run(serve())


@pytest.mark.parametrize(
    ("max_tokens", "default", "expected"),
    [(4, 16, 4), (None, 16, 16), (None, 90, 62), (None, None, 62)],
)
def test_a_default_is_cut_to_the_room_and_a_requested_length_is_not(max_tokens, default, expected):
    engine = StandInEngine()
    service_of(engine, StandInController()).start(
        parsed_request(2, max_tokens, default), Caller("request")
    )
    assert engine.requests[0].max_tokens == expected
