"""The registry of a server's metrics, and the text of a scrape."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from telemetry.histogram import Histogram

_CREATED = "_created"  # when a series began: a line for each that no dashboard reads


class MetricsRegistry(CollectorRegistry):
    """A registry that writes its own text, with histograms the short way.

    There are no exemplars and no lines that say when a series began.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        super().__init__()
        self._collectors: list[Collector] = []

    def register(self, collector: Collector) -> None:
        """Add a metric. Raises `ValueError` for a name that is there already."""
        super().register(collector)
        self._collectors.append(collector)

    def text(self) -> bytes:
        """Return the answer to a scrape."""
        histograms = [one for one in self._collectors if isinstance(one, Histogram)]
        others = [one for one in self._collectors if not isinstance(one, Histogram)]
        lines = [line for histogram in histograms for line in histogram.lines()]
        return generate_latest(_Families(others)) + "".join(lines).encode()


class _Families(Collector):
    """What some collectors have now, without the lines that are left out."""

    def __init__(self, collectors: list[Collector]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            for family in collector.collect():
                family.samples = [s for s in family.samples if not s.name.endswith(_CREATED)]
                yield family
