"""Histograms and the text of a scrape, beside those of `prometheus_client`."""

import random
import threading

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from telemetry import MetricsRegistry
from telemetry.histogram import Histogram

BOUNDS = (0.001, 0.005, 0.25, 1, 2.5, 2560)
AWKWARD = 'a "b" \\ c\nd'


def parsed(text):
    """Return the values of a scrape by name and labels, and the types of its metrics."""
    families = list(text_string_to_metric_families(text.decode()))
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    return samples, {
        f.name: (f.type, f.documentation) for f in families if not f.name.endswith("_created")
    }


def both(values, labels=()):
    """Return scrapes of our histogram and of theirs, which got the same values."""
    ours, theirs = MetricsRegistry(), CollectorRegistry()
    names = tuple(f"label_{index}" for index in range(len(labels)))
    mine = Histogram("some_seconds", "Some time.", BOUNDS, names, ours)
    reference = prometheus_client.Histogram(
        "some_seconds", "Some time.", names, buckets=BOUNDS, registry=theirs
    )
    for value in values:
        (mine.labels(*labels) if labels else mine).observe(value)
        (reference.labels(*labels) if labels else reference).observe(value)
    return ours, theirs


@pytest.mark.parametrize("labels", [(), ("base",), ("base", AWKWARD)])
def test_a_scrape_says_what_that_of_the_library_says(labels):
    chance = random.Random(0)
    values = [*BOUNDS, 0, 1e9, *(10 ** chance.uniform(-4, 4) for _ in range(200))]
    ours, theirs = both(values, labels)
    assert parsed(ours.text()) == parsed(generate_latest(theirs))
    assert parsed(generate_latest(ours)) == parsed(generate_latest(theirs))


def test_a_metric_without_labels_is_there_before_its_first_value_and_one_with_labels_is_not():
    ours, theirs = both([])
    assert parsed(ours.text()) == parsed(generate_latest(theirs))
    registry = MetricsRegistry()
    Histogram("labelled", "x", BOUNDS, ("name",), registry)
    assert parsed(registry.text())[0] == {}


def test_a_value_can_count_many_times():
    registry = MetricsRegistry()
    series = Histogram("h", "x", (1, 2), ("a",), registry).labels("b")
    series.observe(1.5, 3)
    series.observe(9)
    counts, total = series.read()
    assert counts == [0, 3, 4]
    assert total == 13.5


def test_threads_lose_no_values():
    registry = MetricsRegistry()
    histogram = Histogram("h", "x", (0.5,), ("who",), registry)

    def work(who):
        for _ in range(20_000):
            histogram.labels(who).observe(1)

    threads = [threading.Thread(target=work, args=(who,)) for who in "aabb"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [histogram.labels(who).read() for who in "ab"] == [([0, 40_000], 40_000.0)] * 2


def test_a_scrape_has_all_other_metrics_without_exemplars_or_the_times_they_began():
    registry, reference = MetricsRegistry(), CollectorRegistry()
    for target in (registry, reference):
        Counter("some", "Some.", ["kind"], registry=target).labels("a").inc(
            3, exemplar={"trace": "0af7"}
        )
    text = registry.text()
    assert parsed(text) == parsed(generate_latest(reference))
    assert b"_created" not in text
    assert b"0af7" not in text


def test_a_name_is_registered_once():
    registry = MetricsRegistry()
    Histogram("twice", "x", BOUNDS, (), registry)
    with pytest.raises(ValueError, match="twice"):
        Histogram("twice", "x", BOUNDS, (), registry)
