"""What is kept of each call: metrics, the audit log, the shadow's sample and the latest answers."""

import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from controller import Controller, Decision
from controller.audit import AuditLog
from server.api.call import Call
from server.engine.engine import Generation
from server.engine.sequence import FinishReason
from server.shadow.monitor import Answered, Shadow
from server.shadow.teacher_forcing import Reread
from telemetry import ServerMetrics, Snapshot

_RECENT = 50


class Accounts:
    """Hears of every decision and of every end. `audit_prompts` lets texts into the audit log."""

    def __init__(
        self,
        metrics: ServerMetrics,
        controller: Controller,
        shadow: Shadow,
        snapshot: Callable[[], Snapshot],
        audit: AuditLog | None = None,
        audit_prompts: bool = False,
    ) -> None:
        self.metrics = metrics
        self._shadow = shadow
        self._worst: dict[str, float] = {}
        self.recent: deque[dict[str, Any]] = deque(maxlen=_RECENT)
        self._controller = controller
        self._snapshot = snapshot
        self._audit = audit
        self._audit_prompts = audit_prompts

    def decided(self, decision: Decision) -> None:
        """Counts a decision."""
        metrics = self.metrics
        metrics.decisions.labels(decision.action.variant, decision.reason.value).inc()
        metrics.decision_duration.observe(decision.seconds)
        if decision.chosen.loss is not None:
            metrics.predicted_loss.observe(decision.chosen.loss)
        for constraint in decision.masked:
            metrics.shield_masked.labels(constraint).inc()

    def refused(self, call: Call) -> None:
        """A call that was turned away."""
        self.metrics.requests.labels(call.decision.action.variant, "refused").inc()
        self._note(call, _unique(), call.call_id, {"finish_reason": "refused"})

    def ended(self, call: Call, generation: Generation, reason: FinishReason) -> None:
        """One answer that ended, however it did."""
        sequence, metrics = generation.sequence, self.metrics
        request, tokens = sequence.request, len(sequence.output)
        first, last = sequence.first_token_at, sequence.last_token_at
        ttft = None if first is None else first - sequence.arrived
        tpot = None
        if first is not None and last is not None and tokens > 1:
            tpot = (last - first) / (tokens - 1)
        duration = time.monotonic() - sequence.arrived
        if sequence.started_at is not None:
            waited = sequence.started_at - sequence.arrived
            metrics.queue.observe(waited)
            self._controller.observe_wait(call.decision, waited)
        variant = call.decision.action.variant
        prompt = len(request.prompt)
        metrics.finished(variant, reason.value, prompt, tokens, ttft, tpot, duration)
        metrics.prefix_cache_queries.inc(prompt)
        metrics.prefix_cache_hits.inc(sequence.reused)
        metrics.speculation_drafts.inc(sequence.drafts.proposed)
        metrics.speculation_accepted.inc(sequence.drafts.accepted)
        for name, wanted, got in _objectives(call.decision, ttft, tpot, duration):
            if got is None and not request.max_tokens:
                continue  # a prompt that is only scored has no first token
            kept = got is not None and got <= wanted
            metrics.objectives.labels(name, "yes" if kept else "no").inc()
        whole = reason in (FinishReason.STOP, FinishReason.LENGTH)
        if whole and request.max_tokens:
            self._controller.observe_answer(request.max_tokens, tokens)
        outcome = {
            "finish_reason": reason.value,
            "prompt_tokens": prompt,
            "output_tokens": tokens,
            "ttft": ttft,
            "tpot": tpot,
            "seconds": duration,
            "last_variant": sequence.variant.name,
        }
        answer_id = _unique()
        self._note(call, answer_id, request.request_id, outcome)
        if whole and not sequence.narrowed and request.kv_budget is None:
            output = tuple(sequence.output)
            answer = Answered(answer_id, request.variant, request.prompt, output)
            self._shadow.offer(answer)

    def reread(self, answer: Answered, found: Reread) -> None:
        """The shadow's result for an answer. Called in the engine's thread."""
        name, metrics, guard = answer.variant.name, self.metrics, self._controller.quality_guard
        guard.observe(name, found.kl)
        metrics.shadow_loss.labels(name).observe(found.kl)
        self._worst[name] = max(found.worst, self._worst.get(name, 0.0))
        metrics.shadow_worst.labels(name).set(self._worst[name])
        metrics.shadow_tokens.labels(name).inc(found.tokens)
        metrics.shadow_agreed.labels(name).inc(round(found.agreement * found.tokens))
        metrics.variant_trusted.labels(name).set(guard.is_trusted(name))
        if self._audit is not None:
            self._audit.shadow(
                answer.answer_id,
                name,
                {
                    "tokens": found.tokens,
                    "kl": found.kl,
                    "worst": found.worst,
                    "agreement": found.agreement,
                    "trusted": guard.is_trusted(name),
                },
            )

    def close(self) -> None:
        """Writes what the audit log still holds."""
        if self._audit is not None:
            self._audit.close()

    def _note(self, call: Call, answer_id: str, request_id: str, outcome: dict[str, Any]) -> None:
        decision = call.decision
        self.recent.appendleft(
            {
                "id": request_id,
                "time": time.time(),
                "action": decision.action.label,
                "reason": decision.reason.value,
                "complexity": decision.observation.complexity,
                "predicted_loss": decision.chosen.loss,
                **outcome,
            }
        )
        if self._audit is not None:
            text = call.text if self._audit_prompts else None
            self._audit.answer(
                answer_id, request_id, decision, call.features, self._snapshot(), outcome, text
            )


def _unique() -> str:
    """Joins lines of the audit log; a client may send the same request id twice."""
    return uuid.uuid4().hex


def _objectives(
    decision: Decision, ttft: float | None, tpot: float | None, duration: float
) -> Iterator[tuple[str, float, float | None]]:
    wanted = decision.observation.objectives
    if wanted.ttft is not None:
        yield "ttft", wanted.ttft, ttft
    if wanted.tpot is not None:
        yield "tpot", wanted.tpot, tpot
    if wanted.deadline is not None:
        yield "deadline", wanted.deadline, duration
