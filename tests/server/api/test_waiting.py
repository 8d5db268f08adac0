"""What is refused or bounded before a request waits, and on what terms it does."""

import pytest

from server.api.caller import Caller
from server.api.errors import ApiError
from server.engine.engine import QueueFullError
from tests.support.service import StandInController, StandInEngine, parsed_request, service_of


def test_who_would_wait_too_long_is_told_how_long():
    engine = StandInEngine()
    service = service_of(engine, StandInController())
    service.max_wait = 6.0
    with pytest.raises(ApiError, match="takes 7 s, the limit is 6 s") as raised:
        service.start(parsed_request(), Caller("request"))
    assert (raised.value.status, raised.value.retry_after) == (503, 7.0)
    assert service.request_log.ends == ["refused"]
    service.max_wait = 7.0
    service.start(parsed_request(), Caller("request"))
    assert len(engine.requests) == 1


def test_what_can_never_wait_is_invalid_before_any_decision():
    controller = StandInController()
    with pytest.raises(ApiError, match="never") as raised:
        service_of(StandInEngine(), controller).start(parsed_request(n=7), Caller("request"))
    assert raised.value.status == 400
    assert controller.decisions == 0


def test_a_place_is_kept_until_the_request_starts():
    engine = StandInEngine()
    service, caller = service_of(engine, StandInController()), Caller("request", "key-1")
    service.keep_place(caller, [5, 7])
    place = engine.place
    assert (place.requests, place.tokens, place.client) == (2, 12, "key-1")
    assert not place.given_up
    service.start(parsed_request(), caller)
    assert place.given_up
    assert caller.notes.active is not None


def test_without_a_place_a_request_is_told_the_predicted_wait():
    service = service_of(StandInEngine(QueueFullError("full")), StandInController())
    with pytest.raises(ApiError, match="full") as raised:
        service.keep_place(Caller("request"), [5])
    assert (raised.value.status, raised.value.retry_after) == (503, 9.5)


@pytest.mark.parametrize(
    ("asked", "most", "left"), [(None, None, None), (2000, None, 2), (None, 5, 5), (9000, 5, 5)]
)
def test_answers_wait_on_the_terms_of_their_client(asked, most, left):
    engine, caller = StandInEngine(), Caller("request", "key-1")
    service = service_of(engine, StandInController())
    service.builder._answer_seconds = most
    service.start(parsed_request(n=2, trimtab={"timeout_ms": asked}), caller)
    for request in engine.requests:
        assert (request.terms.client, request.terms.work) == ("key-1", 3.0)
        ends_at = None if left is None else caller.notes.arrived + left
        assert request.terms.ends_at == ends_at
