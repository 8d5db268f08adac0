"""OpenTelemetry traces of requests, which the extra `trimtab[otel]` can send.

FastAPI makes the span of each HTTP request, below the one that its `traceparent` names (W3C Trace
Context). Here come the spans of its answers, with attributes of the semantic conventions for
generative AI (github.com/open-telemetry/semantic-conventions-genai) and the latencies as vLLM
names them.
"""

import os
import time
from importlib import metadata
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from server.api.active_request import ActiveRequest
from server.api.answer_timing import AnswerTiming
from server.engine.sequence import FinishReason, Sequence
from server.settings import SettingsError

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig
    from opentelemetry.sdk.trace import TracerProvider
    from starlette.types import Scope

_PATH = "/v1/traces"  # of an OTLP receiver
_FAILURES = (FinishReason.ABORT, FinishReason.ERROR)

Attributes = dict[str, str | int | float | list[str]]


class Tracing:
    """Where spans go; see `open_tracing`."""

    def __init__(self, provider: "TracerProvider", model: str) -> None:
        """`model` is the served name."""
        self._provider = provider
        self._tracer = provider.get_tracer("trimtab", metadata.version("trimtab"))
        self._model = model

    def telemetry(self) -> "TelemetryConfig":
        """Return the configuration of FastAPI's own telemetry: spans of POST requests only."""
        return {**NO_TELEMETRY, "tracing": True, "tracer_provider": self._provider,
                "exclude": _is_no_work}  # fmt: skip

    def record(self, active: ActiveRequest, sequence: Sequence, reason: FinishReason) -> None:
        """Write the spans of an answer that has ended, below the span that is current.

        There is one for the answer, and below it `queue`, `reading` and `writing` as far as it
        came.
        """
        from opentelemetry.trace import Status, StatusCode, set_span_in_context

        zero, ended = time.time_ns() - time.monotonic_ns(), time.monotonic()

        def at(seconds: float) -> int:
            return zero + round(seconds * 1e9)

        attributes = _attributes(active, sequence, reason, self._model)
        name = f"{attributes['gen_ai.operation.name']} {self._model}"
        answer = self._tracer.start_span(
            name, start_time=at(sequence.arrived), attributes=attributes
        )
        below = set_span_in_context(answer)
        times = (
            sequence.arrived, sequence.started_at, sequence.first_token_at, sequence.last_token_at
        )  # fmt: skip
        for part, begin, end in zip(
            ("queue", "reading", "writing"), times, times[1:], strict=False
        ):
            if begin is not None:
                span = self._tracer.start_span(part, context=below, start_time=at(begin))
                span.end(at(ended if end is None else end))
        if reason in _FAILURES:
            answer.set_status(Status(StatusCode.ERROR, reason.value))
        answer.end(at(ended))

    def close(self) -> None:
        """Send what was not sent yet."""
        self._provider.shutdown()


NO_TELEMETRY: "TelemetryConfig" = {
    "tracing": False, "metrics": False, "logs": False, "operation_spans": False,
    "auto_configure": False,
}  # fmt: skip
"""The configuration of FastAPI's own telemetry where there is none."""


def open_tracing(endpoint: str, model: str) -> Tracing:
    """Return what sends spans to an OTLP receiver by HTTP.

    The variables of OpenTelemetry, such as `OTEL_SERVICE_NAME` and `OTEL_TRACES_SAMPLER`, apply.
    Raises `SettingsError` if the packages are missing.
    """
    check_packages()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = os.environ.get("OTEL_SERVICE_NAME") or "trimtab"
    resource = Resource.create({"service.name": service})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    url = endpoint if urlsplit(endpoint).path.strip("/") else endpoint.rstrip("/") + _PATH
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Tracing(provider, model)


def check_packages() -> None:
    """Raise `SettingsError` if the packages of the extra `otel` are missing."""
    try:
        import opentelemetry.exporter.otlp.proto.http
        import opentelemetry.sdk.trace  # noqa: F401
    except ImportError as error:
        hint = "pip install 'trimtab[otel]'"
        raise SettingsError(f"otlp_traces_endpoint needs OpenTelemetry: {hint}") from error


def _is_no_work(scope: "Scope") -> bool:
    return scope.get("method") != "POST"


def _attributes(
    active: ActiveRequest, sequence: Sequence, reason: FinishReason, model: str
) -> Attributes:
    """Return the attributes of an answer's span. Nothing of its text is among them."""
    request, chosen, timing = sequence.request, active.decision.chosen, AnswerTiming.of([sequence])
    sampling = request.sampling
    found: dict[str, str | int | float | list[str] | None] = {
        "gen_ai.operation.name": active.operation,
        "gen_ai.provider.name": "trimtab",
        "gen_ai.request.model": model,
        "gen_ai.response.model": model,
        "gen_ai.response.id": active.request_id,
        "gen_ai.response.finish_reasons": [reason.value],
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.choice.count": active.choices,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.top_k": sampling.top_k,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.usage.input_tokens": len(request.prompt),
        "gen_ai.usage.output_tokens": len(sequence.output),
        "gen_ai.usage.cache_read.input_tokens": min(sequence.reused, len(request.prompt)),
        "gen_ai.latency.time_in_queue": timing.waited,
        "gen_ai.latency.time_in_model_prefill": timing.reading,
        "gen_ai.latency.time_in_model_decode": timing.writing,
        "gen_ai.latency.time_to_first_token": timing.ttft,
        "gen_ai.latency.e2e": timing.total,
        "trimtab.variant": sequence.variant.name,
        "trimtab.read": active.reader,
        "trimtab.kv_budget": chosen.action.kv_budget,
        "trimtab.policy": active.decision.policy,
        "trimtab.reason": active.decision.reason.value,
        "trimtab.predicted_loss": chosen.loss,
    }
    return {name: value for name, value in found.items() if value is not None}
