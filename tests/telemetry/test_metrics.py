import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from telemetry import (
    FinishedRequest,
    GpuReadings,
    MetricsRegistry,
    ServerMetrics,
    Snapshot,
    TelemetryCollector,
    missing,
    present,
)

SERVER_METRICS = {
    "trimtab_requests_total": "counter",
    "trimtab_prompt_tokens_total": "counter",
    "trimtab_generation_tokens_total": "counter",
    "trimtab_time_to_first_token_seconds": "histogram",
    "trimtab_time_per_output_token_seconds": "histogram",
    "trimtab_request_duration_seconds": "histogram",
    "trimtab_reader_requests_total": "counter",
    "trimtab_read_tokens_total": "counter",
    "trimtab_queue_seconds": "histogram",
    "trimtab_step_seconds": "histogram",
    "trimtab_decisions_total": "counter",
    "trimtab_decision_duration_seconds": "histogram",
    "trimtab_analyzer_fallbacks_total": "counter",
    "trimtab_predicted_loss_nats": "histogram",
    "trimtab_shield_masked_total": "counter",
    "trimtab_objectives_total": "counter",
    "trimtab_shadow_loss_nats": "histogram",
    "trimtab_shadow_worst_nats": "gauge",
    "trimtab_shadow_tokens_total": "counter",
    "trimtab_shadow_agreed_tokens_total": "counter",
    "trimtab_variant_trusted": "gauge",
    "trimtab_audit_lines_lost_total": "counter",
    "trimtab_engine_request_failures_total": "counter",
    "trimtab_engine_restarts_total": "counter",
    "trimtab_engine_step_failures_total": "counter",
    "trimtab_policy_info": "gauge",
    "trimtab_requests_running": "gauge",
    "trimtab_requests_waiting": "gauge",
    "trimtab_prefix_cache_queries_total": "counter",
    "trimtab_prefix_cache_hits_total": "counter",
    "trimtab_speculation_draft_tokens_total": "counter",
    "trimtab_speculation_accepted_tokens_total": "counter",
    "trimtab_kv_cache_usage_ratio": "gauge",
    "trimtab_kv_cache_held_bytes": "gauge",
    "trimtab_kv_cache_given_back_bytes_total": "counter",
    "trimtab_learning_running": "gauge",
    "trimtab_learning_stage_done": "gauge",
    "trimtab_learning_step_progress_ratio": "gauge",
    "trimtab_weights_resident_bytes": "gauge",
    "trimtab_variant_info": "gauge",
    "trimtab_reader_info": "gauge",
}


def exposed(registry):
    """Declared name -> type, read from what a scrape sees."""
    lines = registry.text().decode().splitlines()
    declared = (line.split()[2:] for line in lines if line.startswith("# TYPE"))
    return dict(declared)


def collector_of(snapshot):
    registry = MetricsRegistry()
    registry.register(TelemetryCollector(lambda: snapshot))
    return registry


def test_exact_names_and_types():
    registry = MetricsRegistry()
    ServerMetrics(registry)
    assert exposed(registry) == SERVER_METRICS


def test_two_registries_share_nothing():
    one, other = MetricsRegistry(), MetricsRegistry()
    ServerMetrics(one).requests.labels("base", "ok").inc()
    ServerMetrics(other)
    labels = {"variant": "base", "outcome": "ok"}
    assert one.get_sample_value("trimtab_requests_total", labels) == 1
    assert other.get_sample_value("trimtab_requests_total", labels) is None


def finished(outcome, prompt, output, times, reader="full", **read):
    return FinishedRequest("w75", outcome, prompt, output, *times, reader=reader, read=read)


def test_a_finished_request_moves_its_metrics_together():
    registry = MetricsRegistry()
    metrics = ServerMetrics(registry)
    for request in (
        finished("ok", 100, 20, (0.05, 0.004, 0.2)),
        finished("cancelled", 10, 1, (0.05, None, 0.1)),
        finished("refused", 7, 0, (None, None, 0.0)),
        finished("refused", 0, 0, (None, None, None)),
    ):
        metrics.count_request(request)

    def value(name, **labels):
        return registry.get_sample_value(f"trimtab_{name}", {"variant": "w75"} | labels)

    assert value("requests_total", outcome="ok") == 1
    assert value("requests_total", outcome="refused") == 2
    assert value("prompt_tokens_total") == 117
    assert value("generation_tokens_total") == 21
    assert value("time_to_first_token_seconds_count") == 2
    assert value("time_to_first_token_seconds_sum") == pytest.approx(0.1)
    assert value("time_per_output_token_seconds_count") == 1
    assert value("request_duration_seconds_count") == 3
    assert value("request_duration_seconds_sum") == pytest.approx(0.3)


def test_prompt_tokens_are_counted_by_reader_and_by_how_they_were_read():
    registry = MetricsRegistry()
    metrics, none = ServerMetrics(registry), (None, None, None)
    metrics.count_request(finished("ok", 90, 1, none, "read-70", full=20, shallow=60, cached=10))
    metrics.count_request(finished("ok", 30, 1, none, "read-70", full=25, shallow=5, cached=0))
    metrics.count_request(finished("ok", 8, 1, none, full=8, shallow=0, cached=0))
    metrics.count_request(finished("abort", 8, 0, none))

    def value(name, **labels):
        return registry.get_sample_value(f"trimtab_{name}", labels)

    tokens = {
        (reader, read): value("read_tokens_total", reader=reader, read=read)
        for reader in ("read-70", "full")
        for read in ("full", "shallow", "cached")
    }
    assert list(tokens.values()) == [45, 65, 10, 8, 0, 0]
    assert value("reader_requests_total", reader="read-70", outcome="ok") == 2
    assert value("reader_requests_total", reader="full", outcome="abort") == 1


def test_token_times_are_told_apart_below_ten_milliseconds():
    registry = MetricsRegistry()
    ServerMetrics(registry).count_request(finished("ok", 1, 2, (0.003, 0.0032, 1)))

    def below(le):
        labels = {"variant": "w75", "le": le}
        return registry.get_sample_value("trimtab_time_per_output_token_seconds_bucket", labels)

    assert (below("0.003"), below("0.004")) == (0, 1)


def test_variant_info_carries_what_it_is_given():
    registry = MetricsRegistry()
    ServerMetrics(registry).variant.labels("w75").info({"target": "ffn_neuron"})
    labels = {"variant": "w75", "target": "ffn_neuron"}
    assert registry.get_sample_value("trimtab_variant_info", labels) == 1


def test_telemetry_drops_what_is_missing_and_marks_it():
    registry = collector_of(
        Snapshot(
            taken_at=time.monotonic() - 2,
            cpu_utilization_ratio=present(0.25, "/proc/stat"),
            cpu_effective_count=present(4, "affinity"),
            on_battery=missing("/sys/class/power_supply", "no battery"),
        )
    )
    sample = registry.get_sample_value
    assert sample("trimtab_host_cpu_utilization_ratio") == 0.25
    assert sample("trimtab_host_effective_cpus") == 4
    assert "trimtab_host_on_battery" not in exposed(registry)

    def available(reading):
        return sample("trimtab_telemetry_available", {"reading": reading, "uuid": ""})

    assert available("cpu_utilization_ratio") == 1
    assert available("on_battery") == 0
    assert 2 <= sample("trimtab_telemetry_age_seconds") < 5


def test_gpus_are_told_apart_by_uuid():
    gpus = (
        GpuReadings("GPU-a", "H200", power_watts=present(300, "nvml")),
        GpuReadings("GPU-b", "H200", power_watts=missing("nvml", "Not Supported")),
        GpuReadings("GPU-c", "H200", power_watts=present(200, "nvml")),
    )
    sample = collector_of(Snapshot(0.0, gpus=gpus)).get_sample_value
    assert sample("trimtab_gpu_power_watts", {"uuid": "GPU-a"}) == 300
    assert sample("trimtab_gpu_power_watts", {"uuid": "GPU-b"}) is None
    assert sample("trimtab_gpu_power_watts", {"uuid": "GPU-c"}) == 200
    for uuid, expected in (("GPU-a", 1), ("GPU-b", 0)):
        labels = {"reading": "gpu_power_watts", "uuid": uuid}
        assert sample("trimtab_telemetry_available", labels) == expected


def full_snapshot():
    some = present(1.0, "test")
    gpu = GpuReadings("GPU-a", "H200", **{name: some for name, _ in GpuReadings("", "").readings()})
    return Snapshot(0.0, gpus=(gpu,), **{name: some for name, _ in Snapshot(0.0).readings()})


def test_all_telemetry_names_and_types():
    names = exposed(collector_of(full_snapshot()))
    host = (
        "cpu_utilization_ratio effective_cpus cpu_frequency_hertz load_1m memory_total_bytes "
        "memory_available_bytes process_resident_bytes cpu_pressure_ratio memory_pressure_ratio "
        "temperature_celsius cpu_speed_limit_ratio disk_free_bytes battery_charge_ratio on_battery "
        "gpus"
    )
    gpu = "memory_total_bytes memory_used_bytes utilization_ratio power_watts temperature_celsius"
    assert names == {
        **{f"trimtab_host_{name}": "gauge" for name in host.split()},
        **{f"trimtab_gpu_{name}": "gauge" for name in (gpu + " throttled").split()},
        "trimtab_host_cpu_energy_joules_total": "counter",
        "trimtab_gpu_energy_joules_total": "counter",
        "trimtab_telemetry_available": "gauge",
        "trimtab_telemetry_age_seconds": "gauge",
    }


def test_before_the_first_sample_nothing_is_exposed():
    assert exposed(collector_of(None)) == {}


def test_the_answer_of_a_scrape_can_be_parsed():
    registry = collector_of(full_snapshot())
    ServerMetrics(registry)
    families = text_string_to_metric_families(registry.text().decode())
    assert registry.content_type.startswith("text/plain")
    assert len(list(families)) > len(SERVER_METRICS)
