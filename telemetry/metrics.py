"""What the server counts, as Prometheus metrics in a registry of its own."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest


def _ms(*milliseconds: float) -> tuple[float, ...]:
    return tuple(value / 1000 for value in milliseconds)


# Prometheus wants seconds; written in milliseconds, since a small model decodes in less than one.
_TOKEN = (
    *_ms(0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500),
    *(1, 2.5, 5, 10),
)
_FIRST_TOKEN = (
    *_ms(1, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 150, 250, 500, 750),
    *(1, 1.5, 2.5, 5, 10, 20, 40, 80),
)
_REQUEST = (*_ms(10, 25, 50, 100, 250, 500), *(1, 1.5, 2.5, 5, 10, 20, 30, 60, 120, 240, 480))
_QUEUE = (*_ms(1, 2, 5, 10, 25, 50, 100, 250, 500), *(1, 2.5, 5, 10, 20, 40, 80))
_DECISION = _ms(0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 50)
# Nats per token.
_LOSS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)


class ServerMetrics:
    """The server's metrics by name; callers use the attributes directly.

    Labels stay few: variants and reasons are small fixed sets, request ids never appear.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"trimtab_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"trimtab_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            return Histogram(f"trimtab_{name}", text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "requests_total", "Requests that ended, by outcome.", "variant", "outcome"
        )
        self.prompt_tokens = counter(
            "prompt_tokens_total", "Prompt tokens of requests that ended.", "variant"
        )
        self.generation_tokens = counter(
            "generation_tokens_total", "Tokens generated for requests that ended.", "variant"
        )
        self.time_to_first_token = histogram(
            "time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN, "variant"
        )
        self.time_per_output_token = histogram(
            "time_per_output_token_seconds",
            "Mean time per token after the first, per request.",
            _TOKEN,
            "variant",
        )
        self.request_duration = histogram(
            "request_duration_seconds", "Arrival to end of request.", _REQUEST, "variant"
        )
        self.queue = histogram("queue_seconds", "Arrival to first scheduling.", _QUEUE)
        self.step = histogram("step_seconds", "One engine step.", _TOKEN)
        self.step_failures = counter(
            "engine_step_failures_total", "Steps that failed and were run again in parts."
        )
        self.request_failures = counter(
            "engine_request_failures_total", "Requests that the engine ended with an error."
        )

        self.decisions = counter(
            "decisions_total", "Controller decisions, by main reason.", "variant", "reason"
        )
        self.decision_duration = histogram(
            "decision_duration_seconds", "Time to choose a variant.", _DECISION
        )
        self.analyzer_fallbacks = counter(
            "analyzer_fallbacks_total", "Prompts that a backend had no time for.", "backend"
        )
        self.predicted_loss = histogram(
            "predicted_loss_nats", "Predicted loss per token of the chosen variant.", _LOSS
        )
        self.shield_masked = counter(
            "shield_masked_total", "Actions ruled out, by constraint.", "constraint"
        )

        self.objectives = counter(
            "objectives_total", "Objectives of answers that ended, by whether they were kept.",
            "objective", "kept",
        )  # fmt: skip
        self.shadow_loss = histogram(
            "shadow_loss_nats", "Loss per token of answers that the base read again.",
            _LOSS, "variant",
        )  # fmt: skip
        self.shadow_worst = gauge(
            "shadow_worst_nats", "The largest loss of any one token so far.", "variant"
        )
        self.shadow_tokens = counter(
            "shadow_tokens_total", "Tokens that the base read again.", "variant"
        )
        self.shadow_agreed = counter(
            "shadow_agreed_tokens_total", "Of those, the base's most likely ones.", "variant"
        )
        self.variant_trusted = gauge(
            "variant_trusted", "1 while production loses no more than the table says.", "variant"
        )
        self.audit_lines_lost = counter(
            "audit_lines_lost_total", "Lines of the audit log that could not be written."
        )
        # Exposed as trimtab_policy_info.
        self.policy = Info("trimtab_policy", "What decides.", registry=registry)

        self.requests_running = gauge("requests_running", "Requests in the running batch.")
        self.requests_waiting = gauge("requests_waiting", "Requests in the queue.")
        self.prefix_cache_queries = counter(
            "prefix_cache_queries_total", "Prompt tokens looked up among kept prefixes."
        )
        self.prefix_cache_hits = counter(
            "prefix_cache_hits_total", "Prompt tokens that were not computed again."
        )
        self.speculation_drafts = counter(
            "speculation_draft_tokens_total", "Tokens guessed ahead of requests that ended."
        )
        self.speculation_accepted = counter(
            "speculation_accepted_tokens_total", "Of those, the ones that the model confirmed."
        )
        self.kv_cache_usage = gauge("kv_cache_usage_ratio", "Used share of the KV cache, 0 to 1.")
        self.weights_resident = gauge(
            "weights_resident_bytes", "Resident weights, kind base or variants.", "kind"
        )
        # Exposed as trimtab_variant_info.
        self.variant = Info(
            "trimtab_variant", "What a variant is made of.", ["variant"], registry=registry
        )

    def failed(self, what: Literal["step", "request"]) -> None:
        """Count something that failed in the engine."""
        (self.step_failures if what == "step" else self.request_failures).inc()

    def finished(
        self,
        variant: str,
        outcome: str,
        prompt_tokens: int,
        output_tokens: int,
        ttft: float | None,
        tpot: float | None,
        duration: float | None,
    ) -> None:
        """Count one request that ended, however it did.

        Times are seconds; None is one that there was not (no first token, no second, refused).
        """
        self.requests.labels(variant, outcome).inc()
        self.prompt_tokens.labels(variant).inc(prompt_tokens)
        self.generation_tokens.labels(variant).inc(output_tokens)
        for metric, seconds in (
            (self.time_to_first_token, ttft),
            (self.time_per_output_token, tpot),
            (self.request_duration, duration),
        ):
            if seconds is not None:
                metric.labels(variant).observe(seconds)


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The body and the content type of a /metrics answer."""
    return generate_latest(registry), CONTENT_TYPE_LATEST
