"""What a call hands on to the controller and to the engine, both stand-ins here."""

from types import SimpleNamespace

import pytest

from policies import Action, Reason
from server.api.errors import ApiError
from server.api.prompt.reader import Prompt
from server.api.schemas import CompletionBody
from server.api.service import Ask, Service
from server.engine.admission import InvalidRequestError
from server.engine.engine import QueueFullError

_CACHED = {2: {"base": 1, "small": 2}, 3: {"small": 3}, 1: {}}  # by the length of the prompt


class _Engine:
    def __init__(self, error=None):
        self.requests, self.cancelled, self.error = [], 0, error

    def reusable(self, tokens):
        return _CACHED[len(tokens)]

    def submit(self, request, inbox):
        if self.error is not None and self.requests:
            raise self.error
        self.requests.append(request)
        return SimpleNamespace(cancel=self._cancel)

    def _cancel(self):
        self.cancelled += 1


class _Controller:
    decisions = 0

    def decide(self, incoming):
        self.incoming = incoming
        self.decisions += 1
        seen = SimpleNamespace(wait=7.0)
        return SimpleNamespace(
            action=Action("small"), reason=Reason.TTFT, refused=False, observation=seen
        )


class _Accounts:
    refusals = 0

    def decided(self, decision):
        pass

    def refused(self, call):
        self.refusals += 1


def _service(engine, controller):
    model = SimpleNamespace(
        variants={"base": "the base", "small": "the small one"},
        sampling_defaults={},
        eos_token_ids=frozenset(),
        weights=SimpleNamespace(shape=SimpleNamespace(vocab=100)),
    )
    narrowing = SimpleNamespace(follow=lambda _: None, add=lambda *_: None)
    return Service(
        model, engine, controller, lambda text: text, _Accounts(), narrowing, 64, 8, "scorer", None
    )


def test_each_prompt_brings_what_is_cached_of_it_for_the_chosen_variant():
    engine, controller = _Engine(), _Controller()
    service = _service(engine, controller)
    prompts = [Prompt(list(range(length)), "x" * length) for length in (2, 3, 1)]
    service.start(Ask(prompts, CompletionBody(prompt="", n=2), 4), "call")
    assert [request.reusable for request in engine.requests] == [2, 2, 3, 3, 0, 0]
    assert controller.incoming.reusable == _CACHED[3], "of the longest prompt"
    assert controller.incoming.prompt_tokens == 3


@pytest.mark.parametrize(
    ("body", "tokens", "length"),
    [
        ({"logit_bias": {"100": 1}}, 4, 2),
        ({"stop_token_ids": [100]}, 4, 2),
        ({"min_tokens": 5}, 4, 2),
        ({"n": 9}, 4, 2),
        ({"trimtab": {"variant": "none"}}, 4, 2),
        ({}, 63, 2),
        ({}, None, 64),
        ({}, 4, 0),
    ],
)
def test_nothing_is_decided_for_what_is_refused(body, tokens, length):
    engine, controller = _Engine(), _Controller()
    ask = Ask([Prompt(list(range(length)), "x")], CompletionBody(prompt="", **body), tokens)
    with pytest.raises(ApiError) as raised:
        _service(engine, controller).start(ask, "call")
    assert raised.value.status == 400
    assert (controller.decisions, engine.requests) == (0, [])


@pytest.mark.parametrize(
    ("error", "status"),
    [(InvalidRequestError("no token 7"), 400), (QueueFullError("full"), 503), (KeyError(1), None)],
)
def test_what_fails_behind_the_decision_is_counted_and_takes_its_answers_with_it(error, status):
    engine = _Engine(error)
    service = _service(engine, _Controller())
    ask = Ask([Prompt([1, 2], "x")], CompletionBody(prompt="", n=2), 4)
    with pytest.raises(ApiError if status else KeyError) as raised:
        service.start(ask, "call")
    assert (service.accounts.refusals, engine.cancelled) == (1, 1)
    assert status is None or raised.value.status == status


@pytest.mark.parametrize(
    ("given", "default", "wanted"), [(4, 16, 4), (None, 16, 16), (None, 90, 62), (None, None, 62)]
)
def test_a_default_is_cut_to_the_room_and_what_was_asked_for_is_not(given, default, wanted):
    engine = _Engine()
    ask = Ask([Prompt([1, 2], "x")], CompletionBody(prompt=""), given, default)
    _service(engine, _Controller()).start(ask, "call")
    assert engine.requests[0].max_tokens == wanted
