"""vLLM's Prometheus metrics, for dashboards, load generators and gateways that ask for them.

Names, labels and buckets are those of vLLM's V1 engine (`docs/usage/metrics.md` and
`vllm/v1/metrics/loggers.py` in github.com/vllm-project/vllm). What this server does not have, such
as LoRA adapters, external caches and images, is left out.
"""

from collections.abc import Mapping

from prometheus_client import Counter, Gauge

from telemetry.finished_request import FinishedRequest
from telemetry.histogram import Histogram, HistogramSeries
from telemetry.registry import MetricsRegistry

_LABELS = ("model_name", "engine")
_ENGINE = "0"
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40),
    *(80, 160, 640, 2560),
)
# vLLM's begin at 10 ms, in which a small model writes several tokens.
_FINE = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.006, 0.008)
_TOKEN = (
    *_FINE,
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40),
    80,
)
_REQUEST = (
    *(0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920),
    7680,
)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_CHOICES = (1, 2, 5, 10, 20)
_REASONS = ("stop", "length", "abort", "error")
_SLEEP_STATES = {"awake": 1, "weights_offloaded": 0, "discard_all": 0}


class VllmMetrics:
    """The aliases. Methods may be called by any thread."""

    def __init__(self, registry: MetricsRegistry, model: str, context: int) -> None:
        """`model` is the served name; `context` bounds the buckets of lengths, in tokens."""
        self._registry = registry
        self._label_values = (model, _ENGINE)
        self._add_gauges()
        self._add_counters()
        self._add_times()
        self._add_sizes(_lengths(context))
        self._preemptions_seen = 0

    def _gauge(self, name: str, text: str) -> Gauge:
        gauge = Gauge(f"vllm:{name}", text, _LABELS, registry=self._registry)
        return gauge.labels(*self._label_values)

    def _counter(self, name: str, text: str) -> Counter:
        counter = Counter(f"vllm:{name}", text, _LABELS, registry=self._registry)
        return counter.labels(*self._label_values)

    def _counters(self, name: str, text: str, label: str, values: tuple[str, ...]) -> Counter:
        """Return a counter with one more label, whose series are there from the start."""
        counter = Counter(f"vllm:{name}", text, (*_LABELS, label), registry=self._registry)
        for value in values:
            counter.labels(*self._label_values, value)
        return counter

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...]) -> HistogramSeries:
        histogram = Histogram(f"vllm:{name}", text, bounds, _LABELS, self._registry)
        return histogram.labels(*self._label_values)

    def _add_gauges(self) -> None:
        self._running = self._gauge("num_requests_running", "Requests in the running batch.")
        self._waiting = self._gauge("num_requests_waiting", "Requests in the queue.")
        by_reason = Gauge(
            "vllm:num_requests_waiting_by_reason", "Requests in the queue, by why they wait.",
            (*_LABELS, "reason"), registry=self._registry,
        )  # fmt: skip
        self._waiting_for_room = by_reason.labels(*self._label_values, "capacity")
        by_reason.labels(*self._label_values, "deferred")
        self._kv_usage = self._gauge("kv_cache_usage_perc", "Used share of the KV cache, 0 to 1.")
        sleeping = Gauge(
            "vllm:engine_sleep_state", "1 for the state that the engine is in; it never sleeps.",
            (*_LABELS, "sleep_state"), registry=self._registry,
        )  # fmt: skip
        for state, value in _SLEEP_STATES.items():
            sleeping.labels(*self._label_values, state).set(value)

    def _add_counters(self) -> None:
        counter = self._counter
        self._prompt = counter("prompt_tokens", "Prompt tokens of requests that ended.")
        self._written = counter("generation_tokens", "Tokens written for requests that ended.")
        self._success = self._counters(
            "request_success", "Requests that ended.", "finished_reason", _REASONS
        )
        self._by_source = self._counters(
            "prompt_tokens_by_source", "Prompt tokens by where their keys and values came from.",
            "source", ("local_compute", "local_cache_hit", "external_kv_transfer"),
        )  # fmt: skip
        self._cached = counter("prompt_tokens_cached", "Prompt tokens that were not read again.")
        self._queries = counter("prefix_cache_queries", "Prompt tokens looked up in the cache.")
        self._hits = counter("prefix_cache_hits", "Prompt tokens that the cache had.")
        self._preemptions = counter("num_preemptions", "Answers set back to free the cache.")
        self._drafts = counter("spec_decode_num_drafts", "Times that tokens were guessed ahead.")
        self._drafted = counter("spec_decode_num_draft_tokens", "Tokens guessed ahead.")
        self._accepted = counter("spec_decode_num_accepted_tokens", "Of those, the right ones.")
        self._disconnected = counter(
            "http_requests_client_disconnected", "Answers whose clients disconnected."
        )

    def _add_times(self) -> None:
        make = self._histogram
        self._ttft = make("time_to_first_token_seconds", "Arrival to first token.", _FIRST_TOKEN)
        self._itl = make("inter_token_latency_seconds", "From one token to the next.", _TOKEN)
        self._tpot = make(
            "request_time_per_output_token_seconds", "Mean time per token after the first.", _TOKEN
        )
        self._e2e = make("e2e_request_latency_seconds", "Arrival to end.", _REQUEST)
        self._queue = make("request_queue_time_seconds", "Time in the queue.", _REQUEST)
        self._inference = make("request_inference_time_seconds", "Start to last token.", _REQUEST)
        self._prefill = make("request_prefill_time_seconds", "Start to first token.", _REQUEST)
        self._decode = make("request_decode_time_seconds", "First to last token.", _REQUEST)

    def _add_sizes(self, lengths: tuple[float, ...]) -> None:
        make = self._histogram
        self._prompt_sizes = make("request_prompt_tokens", "Tokens of a prompt.", lengths)
        self._output_sizes = make("request_generation_tokens", "Tokens of an answer.", lengths)
        self._computed_sizes = make(
            "request_prefill_kv_computed_tokens", "Tokens of a prompt that were read.", lengths
        )
        self._step_tokens = make("iteration_tokens_total", "Tokens of a step.", _STEP_TOKENS)
        self._longest = make(
            "request_max_num_generation_tokens", "Tokens of a request's longest answer.", lengths
        )
        self._max_tokens = make("request_params_max_tokens", "Parameter max_tokens.", lengths)
        self._choices = make("request_params_n", "Parameter n.", _CHOICES)

    def set_cache_config(self, config: Mapping[str, str]) -> None:
        """Say what the KV cache is: names and values as labels, once."""
        labels = {**config, "engine": _ENGINE}
        info = Gauge(
            "vllm:cache_config_info", "The KV cache.", tuple(labels), registry=self._registry
        )
        info.labels(**labels).set(1)

    def set_load(self, running: int, waiting: int, kv_usage: float, preemptions: int) -> None:
        """Set what is read from the engine at a scrape; `preemptions` counts all so far."""
        self._running.set(running)
        self._waiting.set(waiting)
        self._waiting_for_room.set(waiting)
        self._kv_usage.set(kv_usage)
        self._preemptions.inc(preemptions - self._preemptions_seen)
        self._preemptions_seen = preemptions

    def observe_step(self, tokens: int) -> None:
        """Count a step of the engine and the tokens that it processed."""
        self._step_tokens.observe(tokens)

    def observe_gap(self, seconds: float) -> None:
        """Count the time between two tokens of an answer."""
        self._itl.observe(seconds)

    def count_request(self, request: FinishedRequest) -> None:
        """Count an answer that ended."""
        computed = request.prompt_tokens - request.cached
        self._success.labels(*self._label_values, request.outcome).inc()
        if request.outcome == "abort":
            self._disconnected.inc()
        for counter, tokens in (
            (self._prompt, request.prompt_tokens),
            (self._written, request.output_tokens),
            (self._cached, request.cached),
            (self._queries, request.prompt_tokens),
            (self._hits, request.cached),
            (self._by_source.labels(*self._label_values, "local_compute"), computed),
            (self._by_source.labels(*self._label_values, "local_cache_hit"), request.cached),
            (self._drafts, request.drafts),
            (self._drafted, request.drafted),
            (self._accepted, request.accepted),
        ):
            counter.inc(tokens)
        self._observe_request(request, computed)

    def _observe_request(self, request: FinishedRequest, computed: int) -> None:
        inference = None
        if request.reading is not None and request.writing is not None:
            inference = request.reading + request.writing
        for series, value in (
            (self._ttft, request.ttft),
            (self._tpot, request.tpot),
            (self._e2e, request.duration),
            (self._queue, request.waited),
            (self._inference, inference),
            (self._prefill, request.reading),
            (self._decode, request.writing),
            (self._prompt_sizes, request.prompt_tokens),
            (self._output_sizes, request.output_tokens),
            (self._computed_sizes, computed),
            (self._longest, request.longest),
            (self._max_tokens, request.max_tokens or None),
            (self._choices, request.choices),
        ):
            if value is not None:
                series.observe(value)


def _lengths(context: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, 50 and so on, up to the longest context in tokens."""
    powers = range(len(str(context)))
    return tuple(m * 10**power for power in powers for m in (1, 2, 5) if m * 10**power <= context)
