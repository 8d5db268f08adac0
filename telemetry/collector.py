"""The latest telemetry snapshot as Prometheus metrics, collected at scrape time."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from telemetry.snapshot import Reading, Snapshot

# Fields whose metrics have other names, as Prometheus reserves suffixes such as "_count".
_RENAMED = {"cpu_effective_count": "effective_cpus", "gpu_source": "gpus"}


class TelemetryCollector(Collector):
    """Exposes each reading that has a value. A missing reading is absent, never zero."""

    def __init__(self, latest: Callable[[], Snapshot | None]) -> None:
        """`latest` returns the snapshot to expose, or None for nothing."""
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the latest snapshot, for a scrape."""
        snapshot = self._latest()
        if snapshot is None:
            return
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        available = GaugeMetricFamily(
            "trimtab_telemetry_available",
            "1 where the reading has a value, else 0.",
            labels=["reading", "uuid"],
        )
        for prefix, uuid, name, reading in _all_readings(snapshot):
            label = name if prefix == "host" else f"{prefix}_{name}"
            available.add_metric([label, uuid], float(reading.value is not None))
            if reading.value is not None:
                metric = f"trimtab_{prefix}_{_RENAMED.get(name, name)}"
                if metric not in families:
                    families[metric] = _family(metric, name, labelled=bool(uuid))
                families[metric].add_metric([uuid] if uuid else [], reading.value)
        yield from families.values()
        yield available
        yield GaugeMetricFamily(
            "trimtab_telemetry_age_seconds",
            "Time since the shown sample was taken.",
            value=snapshot.age(),
        )


def _all_readings(snapshot: Snapshot) -> Iterable[tuple[str, str, str, Reading]]:
    """Yield (host or gpu, UUID or empty, field name, reading)."""
    for name, reading in snapshot.readings():
        yield "host", "", name, reading
    for gpu in snapshot.gpus:
        for name, reading in gpu.readings():
            yield "gpu", gpu.uuid, name, reading


def _family(metric: str, name: str, labelled: bool) -> GaugeMetricFamily | CounterMetricFamily:
    labels = ["uuid"] if labelled else None
    text = f"Telemetry reading {name}."
    # Energy only grows, so that it is a counter, with the suffix _total.
    if name.endswith("_joules"):
        return CounterMetricFamily(metric, text, labels=labels)
    return GaugeMetricFamily(metric, text, labels=labels)
