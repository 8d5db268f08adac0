"""What is recorded of requests: metrics, audit lines, the latest answers, what is learnt."""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVarTuple

from controller import Controller, Decision
from controller.audit import AnswerRecord, AuditLog
from policies import Objectives
from pruners.reading.reader import FULL
from server.api.active_request import ActiveRequest
from server.api.answer_timing import AnswerTiming
from server.api.prompt_reading import PromptReading
from server.engine.engine import Generation
from server.engine.sequence import FinishReason, Sequence
from server.shadow.monitor import FinishedAnswer, ShadowMonitor
from server.shadow.teacher_forcing import TeacherForcedLoss
from server.tracing import Tracing
from telemetry import FinishedRequest, ServerMetrics, Snapshot

_RECENT_ANSWERS = 50

Ts = TypeVarTuple("Ts")


class RequestLog:
    """Records each decision and its ends: one refusal, or the end of each answer.

    All methods are called in the event loop, so that nothing here needs a lock. `recent` holds
    the latest answers, newest first. `tracing` gets spans of answers. `audit_prompts` lets prompts'
    texts into the audit log.
    """

    def __init__(
        self,
        metrics: ServerMetrics,
        controller: Controller,
        shadow: ShadowMonitor,
        snapshot: Callable[[], Snapshot],
        audit: AuditLog | None = None,
        audit_prompts: bool = False,
    ) -> None:
        self.metrics = metrics
        self.tracing: Tracing | None = None
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT_ANSWERS)
        self._controller = controller
        self._shadow = shadow
        self._snapshot = snapshot
        self._audit = audit
        self._audit_prompts = audit_prompts
        self._max_kl: dict[str, float] = {}  # of any token yet, by variant and reader

    def log_decision(self, active: ActiveRequest) -> None:
        """Count a request's decision once. It is final, or the request has ended without one."""
        if active.counted:
            return
        active.counted = True
        metrics, decision = self.metrics, active.decision
        metrics.decisions.labels(decision.action.variant, decision.reason.value).inc()
        metrics.decision_duration.observe(decision.seconds)
        if decision.chosen.loss is not None:
            reader = decision.action.reader or FULL
            metrics.predicted_loss.labels(reader).observe(decision.chosen.loss)
        for constraint in decision.masked:
            metrics.shield_masked.labels(constraint).inc()

    def log_refusal(self, active: ActiveRequest) -> None:
        """Record that a request was refused after its decision."""
        self.metrics.requests.labels(active.decision.action.variant, "refused").inc()
        self.metrics.reader_requests.labels(active.reader, "refused").inc()
        self._record(active, _unique_id(), active.request_id, {"finish_reason": "refused"})

    def log_token(self, active: ActiveRequest, generation: Generation) -> None:
        """Count the time since the answer's last token, where vLLM's metrics are served.

        Tokens of one step have one time, and the first of them counts.
        """
        vllm = self.metrics.vllm
        if vllm is None:
            return
        written = generation.sequence.last_token_at
        assert written is not None
        gap = written - active.token_seen_at.get(generation, written)
        if gap > 0:
            vllm.observe_gap(gap)
        active.token_seen_at[generation] = written

    def log_answer(
        self, active: ActiveRequest, generation: Generation, reason: FinishReason
    ) -> None:
        """Record the end of one answer, and let the controller learn from it."""
        sequence = generation.sequence
        timing = AnswerTiming.of([sequence])
        complete = reason in (FinishReason.STOP, FinishReason.LENGTH)
        reading = PromptReading.of([sequence], active.shape)
        self.metrics.count_request(_finished(active, sequence, reason, timing, reading))
        self._count_objectives(active.decision, sequence, timing)
        if self.tracing is not None:
            self.tracing.record(active, sequence, reason)
        self._teach(active.first, sequence, timing, complete)
        answer_id = _unique_id()
        outcome: dict[str, Any] = {
            "finish_reason": reason.value,
            "prompt_tokens": len(sequence.request.prompt),
            "output_tokens": len(sequence.output),
            "ttft": timing.ttft,
            "tpot": timing.tpot,
            "seconds": timing.total,
            "last_variant": sequence.variant.name,
        }
        if reading is not None:
            outcome |= {"read_tokens": reading.tokens, "read_compute": reading.compute}
        self._record(active, answer_id, sequence.request.request_id, outcome)
        if complete:
            self._offer_to_shadow(answer_id, sequence)

    def log_shadow_result(self, answer: FinishedAnswer, loss: TeacherForcedLoss) -> None:
        """Record the loss that the shadow monitor measured for an answer."""
        name, metrics, guard = answer.choice, self.metrics, self._controller.quality_guard
        guard.observe(name, loss.kl)
        trusted = guard.is_trusted(name)
        self._max_kl[name] = max(loss.max_kl, self._max_kl.get(name, 0.0))
        metrics.shadow_loss.labels(name).observe(loss.kl)
        metrics.shadow_worst.labels(name).set(self._max_kl[name])
        metrics.shadow_tokens.labels(name).inc(loss.tokens)
        metrics.shadow_agreed.labels(name).inc(round(loss.agreement * loss.tokens))
        metrics.variant_trusted.labels(name).set(trusted)
        if self._audit is not None:
            measured = {
                "reader": answer.reader,
                "tokens": loss.tokens,
                "kl": loss.kl,
                "worst": loss.max_kl,
                "agreement": loss.agreement,
                "trusted": trusted,
            }
            self._audit.log_shadow(answer.answer_id, answer.variant.name, measured)

    async def close(self) -> None:
        """Write the audit lines that are left. The engine has stopped."""
        await asyncio.sleep(0)  # its thread's last results, which wait in the event loop, come in
        if self._audit is not None:
            self._audit.close()

    def _count_objectives(
        self, decision: Decision, sequence: Sequence, timing: AnswerTiming
    ) -> None:
        """Count which objectives an answer has kept."""
        for name, bound, value in _objectives(decision.observation.objectives, timing):
            if value is None and not sequence.request.max_tokens:
                continue  # a prompt that is only scored has no first token
            met = value is not None and value <= bound
            self.metrics.objectives.labels(name, "yes" if met else "no").inc()

    def _teach(
        self, first: Decision, sequence: Sequence, timing: AnswerTiming, complete: bool
    ) -> None:
        """Tell the controller the time in the queue, and how long a complete answer became."""
        if timing.waited is not None:
            self._controller.observe_wait(first, timing.waited)
        if complete and sequence.request.max_tokens:
            self._controller.observe_answer(sequence.request.max_tokens, len(sequence.output))

    def _offer_to_shadow(self, answer_id: str, sequence: Sequence) -> None:
        """Offer an answer that one variant wrote throughout, without a KV budget."""
        request = sequence.request
        if sequence.narrowed or request.kv_budget is not None:
            return
        reader = None if request.reader is None else request.reader.name
        output, depths = tuple(sequence.output), sequence.depths
        answer = FinishedAnswer(answer_id, request.variant, request.prompt, output, reader, depths)
        self._shadow.offer(answer, _in_this_loop(self.log_shadow_result))

    def _record(
        self, active: ActiveRequest, answer_id: str, request_id: str, outcome: dict[str, Any]
    ) -> None:
        """Add an end to the latest answers and to the audit log."""
        decision = active.decision
        self.recent.appendleft(
            {
                "id": request_id,
                "time": time.time(),
                "action": decision.action.label,
                "read": active.reader,
                "reason": decision.reason.value,
                "waiting": decision.observation.waiting,
                "complexity": decision.observation.complexity,
                "predicted_loss": decision.chosen.loss,
                **outcome,
            }
        )
        if self._audit is not None:
            text = active.text if self._audit_prompts else None
            known = (answer_id, request_id, active.first, decision, active.features)
            self._audit.log_answer(AnswerRecord(*known, self._snapshot(), outcome, text))


def _in_this_loop(function: Callable[[*Ts], None]) -> Callable[[*Ts], None]:
    """Return a function for other threads, which runs `function` in the event loop of now.

    A call after that loop was closed does nothing.
    """
    loop = asyncio.get_running_loop()

    def hand_over(*arguments: *Ts) -> None:
        with suppress(RuntimeError):  # the loop is closed, as it may be at shutdown
            loop.call_soon_threadsafe(function, *arguments)

    return hand_over


def _unique_id() -> str:
    """Return an id that joins lines of the audit log; clients may repeat their request ids."""
    return uuid.uuid4().hex


def _finished(
    active: ActiveRequest,
    sequence: Sequence,
    reason: FinishReason,
    timing: AnswerTiming,
    reading: PromptReading | None,
) -> FinishedRequest:
    """Return what the metrics are told of an answer."""
    request, lookup = sequence.request, sequence.lookup
    is_last = not active.unfinished
    return FinishedRequest(
        variant=active.decision.action.variant,
        outcome=reason.value,
        prompt_tokens=len(request.prompt),
        output_tokens=len(sequence.output),
        ttft=timing.ttft,
        tpot=timing.tpot,
        duration=timing.total,
        waited=timing.waited,
        reading=timing.reading,
        writing=timing.writing,
        reader=active.reader,
        read={} if reading is None else reading.tokens,
        cached=min(sequence.reused, len(request.prompt)),
        drafts=lookup.rounds,
        drafted=lookup.proposed,
        accepted=lookup.accepted,
        max_tokens=request.max_tokens,
        choices=active.choices if is_last else None,
        longest=max(len(one.sequence.output) for one in active.generations) if is_last else None,
    )


def _objectives(
    objectives: Objectives, timing: AnswerTiming
) -> Iterator[tuple[str, float, float | None]]:
    """Yield the name, the bound and the measured value of each objective, in seconds."""
    if objectives.ttft is not None:
        yield "ttft", objectives.ttft, timing.ttft
    if objectives.tpot is not None:
        yield "tpot", objectives.tpot, timing.tpot
    if objectives.deadline is not None:
        yield "deadline", objectives.deadline, timing.total
