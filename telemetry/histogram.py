"""Histograms for `prometheus_client` whose text is cheap: nearly all of a scrape is their lines.

`prometheus_client` makes an object and several strings for each bucket at each scrape. Here the
text of a line up to its number is made once.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate
from threading import Lock

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import INF, floatToGoString


class Histogram(Collector):
    """A metric with one series for each combination of its labels' values.

    `bounds` are the upper ends of the buckets, which grow; the last bucket has none. A metric
    without labels has one series from the start. Any thread may use it.
    """

    def __init__(
        self,
        name: str,
        text: str,
        bounds: Iterable[float],
        labels: tuple[str, ...],
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(float(bound) for bound in bounds)
        self._label_names = labels
        self._series: dict[tuple[str, ...], HistogramSeries] = {}
        self._lock = Lock()
        if not labels:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> "HistogramSeries":
        """Return the series of these values of the labels, which begins empty."""
        series = self._series.get(values)
        if series is None:
            with self._lock:
                labels = dict(zip(self._label_names, values, strict=True))
                series = HistogramSeries(self._name, labels, self._bounds)
                series = self._series.setdefault(values, series)
        return series

    def observe(self, value: float) -> None:
        """Count a value in the series of a metric without labels."""
        self.labels().observe(value)

    def describe(self) -> list[Metric]:
        """Return the name, for the registry."""
        return [Metric(self._name, self._text, "histogram")]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric as `prometheus_client` has it, for all but a scrape."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._label_names)
        for values, series in self._all():
            counts, total = series.read()
            named = zip(map(floatToGoString, (*self._bounds, INF)), counts, strict=True)
            family.add_metric(values, [(bound, float(count)) for bound, count in named], total)
        yield family

    def lines(self) -> Iterator[str]:
        """Yield the lines of a scrape."""
        yield f"# HELP {self._name} {self._text}\n# TYPE {self._name} histogram\n"
        for _, series in self._all():
            yield series.lines()

    def _all(self) -> list[tuple[tuple[str, ...], "HistogramSeries"]]:
        with self._lock:
            return list(self._series.items())


class HistogramSeries:
    """The counts of one series; see `Histogram`."""

    def __init__(self, name: str, labels: dict[str, str], bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0
        self._lock = Lock()
        ends = [floatToGoString(bound) for bound in (*bounds, INF)]
        self._heads = [f"{name}_bucket{_braced({**labels, 'le': end})} " for end in ends]
        self._count_head = f"{name}_count{_braced(labels)} "
        self._sum_head = f"{name}_sum{_braced(labels)} "

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value in the first bucket whose end is not below it, `times` times."""
        index = bisect_left(self._bounds, value)
        with self._lock:
            self._counts[index] += times
            self._total += value * times

    def read(self) -> tuple[list[int], float]:
        """Return how many values each bucket and those before it hold, and the sum of all."""
        with self._lock:
            counts, total = self._counts.copy(), self._total
        return list(accumulate(counts)), total

    def lines(self) -> str:
        """Return the series' lines of a scrape."""
        counts, total = self.read()
        lines = [f"{head}{count}\n" for head, count in zip(self._heads, counts, strict=True)]
        lines += (f"{self._count_head}{counts[-1]}\n", f"{self._sum_head}{total!r}\n")
        return "".join(lines)


def _braced(labels: dict[str, str]) -> str:
    """Return labels as they follow the name of a metric."""
    return f"{{{','.join(f'{key}={_quoted(value)}' for key, value in labels.items())}}}"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
    return f'"{escaped}"'
