"""What the request log records of an answer, and in which thread the shadow's results come in."""

import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from policies import Action, Objectives, Observation, Reason
from pruners.architecture import Shape
from pruners.kv import make_eviction
from pruners.reading.reader import PromptReader
from server.api.request_log import RequestLog
from server.engine.reading_depth import ReadingDepths
from server.engine.sequence import FinishReason, GenerationRequest
from server.shadow.teacher_forcing import TeacherForcedLoss
from telemetry import MetricsRegistry, ServerMetrics

LOSS = TeacherForcedLoss(tokens=2, kl=0.5, max_kl=0.75, agreement=0.5, nll=1.0)
SMALL = SimpleNamespace(name="small")
SHAPE = Shape(layers=4, hidden=8, heads=2, kv_groups=1, head_dim=4, ffn=16, vocab=50)
READER = PromptReader("read-60", depth=2, last=3)


class _Guard:
    """Stands in for the quality guard, and notes the threads that use it."""

    def __init__(self):
        self.threads, self.losses = set(), []

    def observe(self, variant, loss):
        self.threads.add(threading.current_thread())
        self.losses.append(loss)

    def is_trusted(self, variant):
        self.threads.add(threading.current_thread())
        return True


class _Controller:
    def __init__(self):
        self.quality_guard, self.lengths, self.waits = _Guard(), [], []

    def observe_answer(self, max_tokens, tokens):
        self.lengths.append((max_tokens, tokens))

    def observe_wait(self, decision, seconds):
        self.waits.append((decision.observation.wait, seconds))


class _Shadow:
    """Stands in for the shadow monitor: keeps the answers that it is offered."""

    def __init__(self):
        self.offered = []

    def offer(self, answer, on_result):
        self.offered.append((answer, on_result))


def _request_log():
    metrics = ServerMetrics(MetricsRegistry())
    return RequestLog(metrics, _Controller(), _Shadow(), snapshot=lambda: None)


def _decision(name, wait, reader=None, **objectives):
    return SimpleNamespace(
        action=Action(name, None, reader),
        reason=Reason.TTFT,
        chosen=SimpleNamespace(loss=0.1),
        observation=Observation((), Objectives(**objectives), wait, complexity=0.5),
        seconds=1e-4,
        masked=[],
    )


def _active(reader=None, generations=(), **objectives):
    return SimpleNamespace(
        first=_decision("base", 3.0, **objectives),
        decision=_decision("small", 0.0, reader, **objectives),
        request_id="request",
        reader=reader or "full",
        shape=SHAPE,
        counted=False,
        choices=1,
        unfinished={},
        generations=list(generations),
        token_seen_at={},
    )


def _generation(output=(5, 6), prompt=3, reader=None, **fields):
    request = GenerationRequest(
        "request-0", (1,) * prompt, 8, SMALL, kv_budget=fields.pop("kv", None), reader=reader
    )
    now = time.monotonic()
    sequence = SimpleNamespace(
        request=request, depths=ReadingDepths(SHAPE.layers).of(request.prompt, reader),
        output=list(output), variant=SMALL, reused=1, arrived=now - 4,
        started_at=now - 3, first_token_at=now - 2, last_token_at=now - 1,
        narrowed=False, lookup=SimpleNamespace(rounds=2, proposed=4, accepted=3),
    )  # fmt: skip
    vars(sequence).update(fields)
    return SimpleNamespace(sequence=sequence)


def _end(request_log, generation, reason=FinishReason.STOP, **objectives):
    async def end():
        reader = generation.sequence.request.reader
        name = None if reader is None else reader.name
        active = _active(name, [generation], **objectives)
        request_log.log_answer(active, generation, reason)

    asyncio.run(end())


def test_an_answer_is_recorded_with_its_times_and_teaches_the_controller():
    log = _request_log()
    _end(log, _generation())
    (recent,) = log.recent
    assert (recent["id"], recent["finish_reason"]) == ("request-0", "stop")
    assert (recent["prompt_tokens"], recent["output_tokens"]) == (3, 2)
    assert recent["ttft"] == pytest.approx(2)
    assert recent["tpot"] == pytest.approx(1)
    assert recent["seconds"] == pytest.approx(4, abs=0.5)
    assert log._controller.lengths == [(8, 2)]
    assert log._controller.waits == [(3.0, pytest.approx(1))], "as it was predicted at arrival"


def test_the_final_decision_is_what_is_counted_and_once():
    log, active = _request_log(), _active()
    for _ in range(3):
        log.log_decision(active)
    assert log.metrics.decisions.labels("small", "ttft")._value.get() == 1
    assert log.metrics.decisions.labels("base", "ttft")._value.get() == 0


def test_an_answer_is_recorded_with_how_its_prompt_was_read():
    log = _request_log()
    _end(log, _generation(prompt=20, reader=READER))
    (recent,) = log.recent
    assert (recent["action"], recent["read"]) == ("small+read-60", "read-60")
    assert recent["read_tokens"] == {"full": 6, "shallow": 13, "cached": 1}
    assert 0.5 < recent["read_compute"] < 0.8
    counted = log.metrics.read_tokens
    assert counted.labels("read-60", "shallow")._value.get() == 13
    assert counted.labels("read-60", "cached")._value.get() == 1
    assert log.metrics.reader_requests.labels("read-60", "stop")._value.get() == 1


def test_an_answer_that_never_began_says_nothing_of_its_reading():
    log = _request_log()
    never = {"started_at": None, "first_token_at": None, "last_token_at": None}
    _end(log, _generation(reader=READER, **never), FinishReason.ABORT)
    assert "read_tokens" not in log.recent[0]
    assert log.metrics.reader_requests.labels("read-60", "abort")._value.get() == 1


def test_a_decision_and_a_refusal_are_counted_by_reader():
    log = _request_log()
    for reader in (None, "read-60", "read-60"):
        active = _active(reader)
        log.log_decision(active)
        log.log_refusal(active)
    metrics = log.metrics
    for reader, count in (("full", 1), ("read-60", 2)):
        assert metrics.predicted_loss.labels(reader).read()[1] == pytest.approx(0.1 * count)
        assert metrics.reader_requests.labels(reader, "refused")._value.get() == count
    assert [one["read"] for one in log.recent] == ["read-60", "read-60", "full"]


@pytest.mark.parametrize("reason", [FinishReason.ABORT, FinishReason.ERROR])
def test_an_answer_that_was_cut_off_teaches_no_length_and_is_not_checked(reason):
    log = _request_log()
    _end(log, _generation(), reason)
    assert log._controller.lengths == []
    assert log._shadow.offered == []
    assert len(log.recent) == 1


@pytest.mark.parametrize(
    ("ttft", "output", "first_token_at", "met"),
    [(3.0, (5, 6), None, "yes"), (1.0, (5, 6), None, "no"), (3.0, (), 0, "no")],
)
def test_an_objective_is_met_by_a_token_in_time(ttft, output, first_token_at, met):
    log = _request_log()
    fields = {} if first_token_at is None else {"first_token_at": None, "last_token_at": None}
    _end(log, _generation(output, **fields), ttft=ttft)
    assert log.metrics.objectives.labels("ttft", met)._value.get() == 1


@pytest.mark.parametrize("fields", [{"narrowed": True}, {"kv": make_eviction(32)}])
def test_an_answer_of_two_variants_or_a_kv_budget_is_not_checked(fields):
    log = _request_log()
    _end(log, _generation(**fields))
    assert log._shadow.offered == []


def test_what_a_reader_loses_counts_for_variant_and_reader():
    log = _request_log()
    _end(log, _generation(reader=READER))
    ((answer, _),) = log._shadow.offered
    assert (answer.choice, answer.depths) == ("small+read-60", bytes([255] * 3))
    log.log_shadow_result(answer, LOSS)
    assert log.metrics.shadow_tokens.labels("small+read-60")._value.get() == 2
    assert log.metrics.shadow_tokens.labels("small")._value.get() == 0


def test_results_of_the_engines_thread_are_recorded_in_the_event_loop():
    log, count = _request_log(), 200

    async def serve():
        for _ in range(count):
            generation = _generation()
            log.log_answer(_active(None, [generation]), generation, FinishReason.STOP)
        results = list(log._shadow.offered)
        thread = threading.Thread(target=lambda: [done(answer, LOSS) for answer, done in results])
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0)
        await log.close()
        assert log._controller.quality_guard.losses == [LOSS.kl] * count
        assert log._controller.quality_guard.threads == {threading.current_thread()}

    asyncio.run(serve())
    assert log.metrics.shadow_tokens.labels("small")._value.get() == 2 * count
    assert log.metrics.shadow_worst.labels("small")._value.get() == LOSS.max_kl


def test_a_result_after_the_end_of_the_event_loop_is_dropped():
    log = _request_log()
    _end(log, _generation())
    ((answer, on_result),) = log._shadow.offered
    on_result(answer, LOSS)
    assert log._controller.quality_guard.losses == []
