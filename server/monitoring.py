"""What a server measures: the machine, its requests, and its steps."""

from controller import Controller, StepRecord
from server.engine.cache.arena import GRANULARITY
from server.engine.cache.storage import KVStorage
from telemetry import (
    MetricsRegistry,
    Sampler,
    ServerMetrics,
    Snapshot,
    TelemetryCollector,
    VllmMetrics,
)


class Monitoring:
    """Readings of the machine and the server's metrics. The sampler starts at once."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        sampler.start()
        self.registry = MetricsRegistry()
        self.metrics = ServerMetrics(self.registry)
        self.registry.register(TelemetryCollector(sampler.latest))

    def snapshot(self) -> Snapshot:
        """Return the latest readings of the machine."""
        latest = self._sampler.latest()
        assert latest is not None
        return latest

    def add_vllm_names(self, model: str, context: int, cache: KVStorage) -> None:
        """Serve the metrics under vLLM's names, too. `context` is in tokens."""
        self.metrics.vllm = VllmMetrics(self.registry, model, context)
        self.metrics.vllm.set_cache_config(
            {
                "block_size": str(GRANULARITY),
                "num_gpu_blocks": str(cache.arena.capacity // GRANULARITY),
                "cache_dtype": str(cache.keys.dtype).removeprefix("torch."),
                "enable_prefix_caching": "True",
            }
        )

    def stop(self) -> None:
        """Stop reading the machine."""
        self._sampler.stop()


class StepListener:
    """Passes what steps took on to the metrics, and to the controller once it is attached.

    The controller needs the engine, and the engine needs this listener, so it comes first.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._controller: Controller | None = None

    def attach(self, controller: Controller) -> None:
        """Pass further steps on to `controller`, too."""
        self._controller = controller

    def __call__(self, record: StepRecord) -> None:
        self._metrics.step.observe(record.seconds)
        if self._metrics.vllm is not None:
            self._metrics.vllm.observe_step(sum(tokens for _, tokens, _ in record.rows))
        if self._controller is not None:
            self._controller.observe_step(record)

    def fit(self, records: list[StepRecord]) -> None:
        """Give the controller its first measurements."""
        if self._controller is not None and records:
            self._controller.step_time_model.fit(records)
