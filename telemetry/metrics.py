"""The server's Prometheus metrics: counters, gauges and histograms."""

from typing import Literal

from prometheus_client import Counter, Gauge, Info

from telemetry.finished_request import FinishedRequest
from telemetry.histogram import Histogram
from telemetry.registry import MetricsRegistry
from telemetry.vllm_metrics import VllmMetrics


def _ms(*milliseconds: float) -> tuple[float, ...]:
    return tuple(value / 1000 for value in milliseconds)


# Buckets are in seconds, as Prometheus requires. A small model decodes a token in less than a
# millisecond.
_TOKEN_BUCKETS = (
    *_ms(0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500),
    *(1, 2.5, 5, 10),
)
_FIRST_TOKEN_BUCKETS = (
    *_ms(1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 150, 250, 500, 750),
    *(1, 1.5, 2.5, 5, 10, 20, 40, 80),
)
_REQUEST_BUCKETS = (
    *_ms(10, 25, 50, 100, 250, 500),
    *(1, 1.5, 2.5, 5, 10, 20, 30, 60, 120, 240, 480),
)
_QUEUE_BUCKETS = (*_ms(1, 2, 5, 10, 25, 50, 100, 250, 500), *(1, 2.5, 5, 10, 20, 40, 80))
_DECISION_BUCKETS = _ms(0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 50)
# In nats per token.
_LOSS_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)


class _MetricFactory:
    """Creates metrics in a registry. Names get the prefix `trimtab_`."""

    def __init__(self, registry: MetricsRegistry) -> None:
        self._registry = registry

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"trimtab_{name}", text, labels, registry=self._registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"trimtab_{name}", text, labels, registry=self._registry)

    def histogram(
        self, name: str, text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(f"trimtab_{name}", text, buckets, labels, self._registry)

    def info(self, name: str, text: str, *labels: str) -> Info:
        return Info(f"trimtab_{name}", text, labels, registry=self._registry)


class ServerMetrics:
    """The server's metrics, one attribute each, which callers use directly.

    Labels have few values: variants and reasons are small fixed sets, and request ids are never
    labels. Any thread may use the metrics. `vllm` has the same under vLLM's names, if asked for.
    """

    vllm: VllmMetrics | None = None

    def __init__(self, registry: MetricsRegistry) -> None:
        make = _MetricFactory(registry)
        self._add_requests(make)
        self._add_decisions(make)
        self._add_quality(make)
        self._add_state(make)

    def _add_requests(self, make: _MetricFactory) -> None:
        """Requests, and steps of the engine."""
        self.requests = make.counter(
            "requests_total", "Requests that ended, by outcome.", "variant", "outcome"
        )
        self.prompt_tokens = make.counter(
            "prompt_tokens_total", "Prompt tokens of requests that ended.", "variant"
        )
        self.generation_tokens = make.counter(
            "generation_tokens_total", "Tokens generated for requests that ended.", "variant"
        )
        self.time_to_first_token = make.histogram(
            "time_to_first_token_seconds",
            "Arrival to first token.",
            _FIRST_TOKEN_BUCKETS,
            "variant",
        )
        self.time_per_output_token = make.histogram(
            "time_per_output_token_seconds",
            "Mean time per token after the first, per request.",
            _TOKEN_BUCKETS,
            "variant",
        )
        self.request_duration = make.histogram(
            "request_duration_seconds", "Arrival to end of request.", _REQUEST_BUCKETS, "variant"
        )
        self.reader_requests = make.counter(
            "reader_requests_total", "Requests that ended, by the reader of their prompts.",
            "reader", "outcome",
        )  # fmt: skip
        self.read_tokens = make.counter(
            "read_tokens_total", "Prompt tokens, by how they were read: full, shallow or cached.",
            "reader", "read",
        )  # fmt: skip
        self.queue = make.histogram("queue_seconds", "Arrival to first scheduling.", _QUEUE_BUCKETS)
        self.step = make.histogram("step_seconds", "One engine step.", _TOKEN_BUCKETS)
        self.step_failures = make.counter(
            "engine_step_failures_total", "Steps that failed and were run again in parts."
        )
        self.request_failures = make.counter(
            "engine_request_failures_total", "Requests that the engine ended with an error."
        )
        self.engine_restarts = make.counter(
            "engine_restarts_total", "Times that the engine broke and started again."
        )

    def _add_decisions(self, make: _MetricFactory) -> None:
        """Decisions of the controller."""
        self.decisions = make.counter(
            "decisions_total", "Controller decisions, by main reason.", "variant", "reason"
        )
        self.decision_duration = make.histogram(
            "decision_duration_seconds", "Time to choose a variant.", _DECISION_BUCKETS
        )
        self.analyzer_fallbacks = make.counter(
            "analyzer_fallbacks_total", "Prompts that a backend had no time for.", "backend"
        )
        self.predicted_loss = make.histogram(
            "predicted_loss_nats", "Predicted loss per token of the chosen action.",
            _LOSS_BUCKETS, "reader",
        )  # fmt: skip
        self.shield_masked = make.counter(
            "shield_masked_total", "Actions ruled out, by constraint.", "constraint"
        )

    def _add_quality(self, make: _MetricFactory) -> None:
        """Objectives, measured losses, and the audit log."""
        self.objectives = make.counter(
            "objectives_total", "Objectives of answers that ended, by whether they were kept.",
            "objective", "kept",
        )  # fmt: skip
        self.shadow_loss = make.histogram(
            "shadow_loss_nats", "Loss per token of answers that the base read again.",
            _LOSS_BUCKETS, "variant",
        )  # fmt: skip
        self.shadow_worst = make.gauge(
            "shadow_worst_nats", "The largest loss of any one token so far.", "variant"
        )
        self.shadow_tokens = make.counter(
            "shadow_tokens_total", "Tokens that the base read again.", "variant"
        )
        self.shadow_agreed = make.counter(
            "shadow_agreed_tokens_total", "Of those, the base's most likely ones.", "variant"
        )
        self.variant_trusted = make.gauge(
            "variant_trusted", "1 while production loses no more than the table says.", "variant"
        )
        self.audit_lines_lost = make.counter(
            "audit_lines_lost_total", "Lines of the audit log that could not be written."
        )
        # Exposed as trimtab_policy_info.
        self.policy = make.info("policy", "What decides.")

    def _add_state(self, make: _MetricFactory) -> None:
        """Queue, caches, speculation, weights and variants."""
        self.requests_running = make.gauge("requests_running", "Requests in the running batch.")
        self.requests_waiting = make.gauge("requests_waiting", "Requests in the queue.")
        self.prefix_cache_queries = make.counter(
            "prefix_cache_queries_total", "Prompt tokens looked up among kept prefixes."
        )
        self.prefix_cache_hits = make.counter(
            "prefix_cache_hits_total", "Prompt tokens that were not computed again."
        )
        self.speculation_drafts = make.counter(
            "speculation_draft_tokens_total", "Tokens guessed ahead of requests that ended."
        )
        self.speculation_accepted = make.counter(
            "speculation_accepted_tokens_total", "Of those, the ones that the model confirmed."
        )
        self.kv_cache_usage = make.gauge(
            "kv_cache_usage_ratio", "Used share of the KV cache, 0 to 1."
        )
        self.kv_cache_held = make.gauge(
            "kv_cache_held_bytes", "Memory that the KV cache has taken from the system."
        )
        self.kv_cache_given_back = make.counter(
            "kv_cache_given_back_bytes_total",
            "Memory given back to the system while it was short: of free slots or of prefixes.",
            "held",
        )
        self.weights_resident = make.gauge(
            "weights_resident_bytes", "Resident weights, kind base, variants or readers.", "kind"
        )
        self.learning_running = make.gauge(
            "learning_running", "1 while more is learned of the model, 0 while that waits."
        )
        self.learning_stage_done = make.gauge(
            "learning_stage_done", "1 for each finished stage of learning, else 0.", "stage"
        )
        self.learning_step_progress = make.gauge(
            "learning_step_progress_ratio", "Done share of the step that is being learned."
        )
        # Exposed as trimtab_variant_info and trimtab_reader_info.
        self.variant = make.info("variant", "What a variant is made of.", "variant")
        self.reader = make.info("reader", "How deep a reader reads.", "reader")

    def count_given_back(self, what: Literal["free", "prefixes"], size: int) -> None:
        """Count bytes of the KV cache that went back to the system, by what they held."""
        self.kv_cache_given_back.labels(what).inc(size)

    def count_failure(self, what: Literal["step", "request", "engine"]) -> None:
        """Count a step or a request that failed in the engine, or that it started again."""
        counters = {"request": self.request_failures, "engine": self.engine_restarts}
        counters.get(what, self.step_failures).inc()

    def count_request(self, request: FinishedRequest) -> None:
        """Count a request that ended."""
        variant = request.variant
        self.requests.labels(variant, request.outcome).inc()
        self.prompt_tokens.labels(variant).inc(request.prompt_tokens)
        self.generation_tokens.labels(variant).inc(request.output_tokens)
        self.prefix_cache_queries.inc(request.prompt_tokens)
        self.prefix_cache_hits.inc(request.cached)
        self.speculation_drafts.inc(request.drafted)
        self.speculation_accepted.inc(request.accepted)
        self.reader_requests.labels(request.reader, request.outcome).inc()
        for how, tokens in request.read.items():
            self.read_tokens.labels(request.reader, how).inc(tokens)
        for metric, seconds in (
            (self.time_to_first_token, request.ttft),
            (self.time_per_output_token, request.tpot),
            (self.request_duration, request.duration),
        ):
            if seconds is not None:
                metric.labels(variant).observe(seconds)
        if request.waited is not None:
            self.queue.observe(request.waited)
        if self.vllm is not None:
            self.vllm.count_request(request)
