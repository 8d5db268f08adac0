"""What a client, the metrics and the log are told is the decision of the start, not the first."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from controller.audit import AuditLog
from policies import Action, Objectives, Observation, Reason
from server.api.caller import Caller
from server.api.errors import ApiError
from server.api.model_names import ModelNames
from server.api.narrowing import AnswerNarrowing
from server.api.prompt.processor import TokenizedPrompt
from server.api.request_builder import ParsedRequest, RequestBuilder
from server.api.request_log import RequestLog
from server.api.responses import collect, stream
from server.api.schemas import CompletionBody
from server.api.service import Service
from server.engine.engine import Engine
from server.engine.options import EngineOptions
from telemetry import MetricsRegistry, ServerMetrics, Snapshot
from tests.support.driving import TOKENIZER, runner_of, variants_of, weights_of
from tests.support.readers import SHALLOW, SubstitutingDecoder
from tests.support.tiny import tiny_model

WEIGHTS = weights_of(tiny_model())
VARIANTS = variants_of(WEIGHTS)


def _decision(action, reason=Reason.TTFT, wait=0.0):
    return SimpleNamespace(
        action=action,
        chosen=SimpleNamespace(action=action, loss=0.1, ttft=0.1, tpot=0.01),
        reason=reason,
        policy="rule",
        observation=Observation((), Objectives(), wait, complexity=0.5),
        seconds=1e-4,
        masked=[],
        propensities={},
        work=1.0,
        refused=False,
        only_choice=reason is Reason.PINNED,
    )


class _Controller:
    """Says one action at the arrival and another one at the start."""

    def __init__(self, final, reason=Reason.TTFT, error=None):
        self.final, self.reason, self.error = final, reason, error
        self.waits, self.starts, self.reusable = [], [], []
        self.catalogue = SimpleNamespace(full_from=lambda tokens: {})

    def decide(self, incoming):
        return _decision(Action("base"), self.reason, wait=7.0)

    def redecide(self, incoming, first, others, waited):
        self.starts.append((len(others.sequences), waited))
        self.reusable.append(dict(incoming.reusable))
        if self.error is not None:
            raise self.error
        return _decision(self.final, Reason.QUEUE)

    def observe_wait(self, decision, seconds):
        self.waits.append(decision.observation.wait)

    def observe_answer(self, most, tokens):
        pass


class _Request:
    """A client that stays, or one that leaves."""

    def __init__(self, leaves=False):
        self._leaves = leaves

    async def receive(self):
        if not self._leaves:
            await asyncio.sleep(60)
        return {"type": "http.disconnect"}


def _service(controller, tmp_path, running=4):
    runner = runner_of(WEIGHTS, kind=SubstitutingDecoder, running=running)
    engine = Engine(runner, TOKENIZER, EngineOptions(16, 4000))
    model = SimpleNamespace(
        variants=VARIANTS,
        readers={SHALLOW.name: SHALLOW},
        sampling_defaults={},
        eos_token_ids=frozenset(),
        weights=WEIGHTS,
    )
    log = RequestLog(
        ServerMetrics(MetricsRegistry()),
        controller,
        SimpleNamespace(offer=lambda *_: None),
        lambda: Snapshot(0.0),
        AuditLog(tmp_path / "audit.jsonl"),
    )
    builder = RequestBuilder(
        model, ModelNames("tiny"), context_tokens=256, max_answers=8, kv_scorer="snap"
    )
    narrowing = AnswerNarrowing(always=False)
    return Service(engine, controller, lambda text: None, builder, log, narrowing)


def _serve(controller, tmp_path, work, running=4):
    """Run `work` with a service whose engine runs; return what it returns, and the audit lines."""
    service = _service(controller, tmp_path, running)

    async def serve():
        service.engine.start()
        try:
            return await work(service)
        finally:
            service.engine.stop()
            await service.request_log.close()

    found = asyncio.run(serve())
    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    return service, found, [json.loads(line) for line in lines]


def _parsed(prompts=1, **body):
    tokens = [TokenizedPrompt(list(range(i, i + 30)), "x") for i in range(prompts)]
    return ParsedRequest(tokens, CompletionBody(prompt="", **body), 4)


FINAL = Action("ffn-50", kv_budget=32, reader=SHALLOW.name)


def test_all_answers_share_one_final_decision_which_is_what_is_told(tmp_path):
    controller = _Controller(FINAL)

    async def work(service):
        active = service.start(_parsed(2, n=2), Caller("request"))
        await collect(service, active, _Request())
        return active

    service, active, lines = _serve(controller, tmp_path, work)
    (start,) = controller.starts
    assert start[0] == 0, "its own answers are no others"
    assert start[1] >= 0
    for generation in active.generations:
        request = generation.sequence.request
        assert (request.variant, request.reader) == (VARIANTS["ffn-50"], SHALLOW)
        assert request.kv_budget.budget == 32
    told = active.disclosure()
    assert (told["variant"], told["kv_budget"], told["reason"]) == ("ffn-50", 32, "queue")
    assert told["predicted_queue_ms"] == 7000.0, "as it was predicted when it came"
    assert active.headers()["X-Trimtab-Variant"] == "ffn-50"
    decisions = service.request_log.metrics.decisions
    assert decisions.labels("ffn-50", "queue")._value.get() == 1
    assert decisions.labels("base", "ttft")._value.get() == 0
    assert controller.waits == [7.0] * 4
    assert {line["action"] for line in lines} == {FINAL.label}
    assert {line["arrival"]["action"] for line in lines} == {"base"}
    assert {answer["action"] for answer in service.request_log.recent} == {FINAL.label}


def test_the_cache_is_as_it_is_at_the_start(tmp_path):
    controller = _Controller(Action("base"))

    async def work(service):
        actives = [service.start(_parsed(), Caller(name)) for name in ("first", "second")]
        for active in actives:
            await collect(service, active, _Request())

    _serve(controller, tmp_path, work, running=1)
    assert [found.get(("base", None), 0) for found in controller.reusable] == [0, 29]


def test_a_named_action_is_not_decided_again(tmp_path):
    controller = _Controller(FINAL, Reason.PINNED)

    async def work(service):
        active = service.start(_parsed(), Caller("request"))
        await collect(service, active, _Request())
        return active

    _, active, _ = _serve(controller, tmp_path, work)
    assert controller.starts == []
    assert active.disclosure()["variant"] == "base"


def test_after_an_error_the_first_decision_holds_for_all_answers(tmp_path, caplog):
    controller = _Controller(FINAL, error=RuntimeError("no idea"))

    async def work(service):
        active = service.start(_parsed(n=2), Caller("request"))
        answers = await collect(service, active, _Request())
        return active, answers

    service, (active, answers), lines = _serve(controller, tmp_path, work)
    assert [answer.tokens for answer in answers] == [4, 4]
    assert len(controller.starts) == 1
    logged = [record.getMessage() for record in caplog.records]
    assert logged == ["request keeps the action of its arrival"]
    assert active.disclosure()["variant"] == "base"
    assert {line["action"] for line in lines} == {"base"}
    assert service.request_log.metrics.decisions.labels("base", "ttft")._value.get() == 1


async def _events(response):
    return "".join([event async for event in response.body_iterator])


def test_a_stream_begins_when_its_decision_is_final(tmp_path):
    controller = _Controller(FINAL)

    async def work(service):
        first = service.start(_parsed(ignore_eos=True), Caller("first"))
        second = service.start(_parsed(1), Caller("second"))

        def head():
            yield second.disclosure()

        streaming = asyncio.create_task(
            stream(service, second, _Request(), lambda *_: (), head(), lambda _: ())
        )
        await asyncio.sleep(0)
        assert not streaming.done(), "it waits for the one before it"
        await collect(service, first, _Request())
        response = await streaming
        return response.headers["x-trimtab-variant"], await _events(response)

    _, (header, text), _ = _serve(controller, tmp_path, work, running=1)
    assert header == "ffn-50"
    assert json.loads(text.splitlines()[0].removeprefix("data: "))["variant"] == "ffn-50"
    assert "base" not in text


def test_a_client_that_leaves_before_the_start_waits_no_longer(tmp_path):
    controller = _Controller(FINAL)

    async def work(service):
        body = _parsed(ignore_eos=True)
        first = service.start(ParsedRequest(body.prompts, body.body, 100), Caller("first"))
        second = service.start(_parsed(), Caller("second"))
        with pytest.raises(ApiError) as raised:
            await stream(service, second, _Request(leaves=True), lambda *_: ())
        assert raised.value.status == 499
        assert all(generation.sequence.cancelled for generation in second.generations)
        service.close(first)
        return second

    service, second, lines = _serve(controller, tmp_path, work, running=1)
    assert not second.final
    assert len(controller.starts) <= 1
    ends = {line["id"]: (line["action"], line["outcome"]["finish_reason"]) for line in lines}
    assert ends["second-0"] == ("base", "abort")
    assert service.request_log.metrics.decisions.labels("base", "ttft")._value.get() >= 1
