"""Names, labels and buckets that tools made for vLLM ask for."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from telemetry import FinishedRequest, MetricsRegistry, VllmMetrics

MODEL = {"model_name": "mine", "engine": "0"}
ASKED_FOR = """
vllm:num_requests_running vllm:num_requests_waiting vllm:kv_cache_usage_perc
vllm:prompt_tokens_total vllm:generation_tokens_total vllm:request_success_total
vllm:num_preemptions_total
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:cache_config_info
vllm:time_to_first_token_seconds_bucket vllm:inter_token_latency_seconds_bucket
vllm:e2e_request_latency_seconds_sum vllm:request_queue_time_seconds_count
vllm:request_inference_time_seconds_sum vllm:request_prefill_time_seconds_sum
vllm:request_decode_time_seconds_sum vllm:request_time_per_output_token_seconds_bucket
vllm:request_prompt_tokens_bucket vllm:request_generation_tokens_bucket
vllm:iteration_tokens_total_bucket vllm:request_params_n_bucket
vllm:request_params_max_tokens_bucket vllm:request_max_num_generation_tokens_bucket
vllm:request_prefill_kv_computed_tokens_bucket vllm:prompt_tokens_cached_total
vllm:prompt_tokens_by_source_total vllm:num_requests_waiting_by_reason vllm:engine_sleep_state
vllm:spec_decode_num_drafts_total vllm:spec_decode_num_draft_tokens_total
vllm:spec_decode_num_accepted_tokens_total vllm:http_requests_client_disconnected_total
"""
"""What inference-perf, the gateway API's inference extension and vLLM's own dashboard read."""
THEIR_TOKEN_BUCKETS = (
    "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 +Inf"
)
THEIR_REQUEST_BUCKETS = (
    "0.3 0.5 0.8 1.0 1.5 2.0 2.5 5.0 10.0 15.0 20.0 30.0 40.0 50.0 60.0 120.0 240.0 480.0 960.0 "
    "1920.0 7680.0 +Inf"
)
THEIR_FIRST_TOKEN_BUCKETS = (
    "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 20.0 40.0 80.0 "
    "160.0 640.0 2560.0 +Inf"
)


@pytest.fixture
def registry():
    return MetricsRegistry()


@pytest.fixture
def metrics(registry):
    metrics = VllmMetrics(registry, "mine", 2048)
    metrics.set_cache_config({"block_size": "64", "num_gpu_blocks": "100"})
    return metrics


def samples(registry):
    """Return what a scrape says: the value of each line by its name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(registry.text().decode())
        for sample in family.samples
    }


def value(registry, name, **labels):
    return samples(registry)[(f"vllm:{name}", *sorted({**MODEL, **labels}.items()))]


def buckets(registry, name):
    text = registry.text().decode()
    return re.findall(rf'^vllm:{name}_bucket{{.*le="([^"]+)"', text, re.MULTILINE)


def request(outcome="stop", **fields):
    known = {
        "prompt_tokens": 100, "output_tokens": 11, "ttft": 0.3, "tpot": 0.02, "duration": 0.55,
        "waited": 0.1, "reading": 0.2, "writing": 0.2, "cached": 64, "max_tokens": 16,
        "choices": 2, "longest": 11, "drafts": 3, "drafted": 7, "accepted": 4,
    }  # fmt: skip
    return FinishedRequest("base", outcome, **{**known, **fields})


def test_every_name_is_there_from_the_start(registry, metrics):
    names = {key[0] for key in samples(registry)}
    assert set(ASKED_FOR.split()) <= names


def test_all_but_the_cache_have_the_labels_of_vllm(registry, metrics):
    own = {"le", "reason", "finished_reason", "source", "sleep_state"}
    for name, *labels in samples(registry):
        if name != "vllm:cache_config_info":
            assert dict(labels).keys() - own == set(MODEL), name
            assert {key: dict(labels)[key] for key in MODEL} == MODEL
    config = [key for key in samples(registry) if key[0] == "vllm:cache_config_info"]
    assert dict(config[0][1:]) == {"engine": "0", "block_size": "64", "num_gpu_blocks": "100"}


def test_buckets_are_those_of_vllm_and_finer_ones_below_them(registry, metrics):
    assert buckets(registry, "time_to_first_token_seconds") == THEIR_FIRST_TOKEN_BUCKETS.split()
    for name in ("inter_token_latency_seconds", "request_time_per_output_token_seconds"):
        ours, theirs = buckets(registry, name), THEIR_TOKEN_BUCKETS.split()
        assert ours[-len(theirs) :] == theirs
        finer = [float(bound) for bound in ours[: -len(theirs)]]
        assert len(finer) >= 6
        assert finer == sorted(finer)
        assert finer[-1] < 0.01
    for name in ("e2e_request_latency", "request_queue_time", "request_decode_time"):
        assert buckets(registry, f"{name}_seconds") == THEIR_REQUEST_BUCKETS.split()
    lengths = ["1", "2", "5", "10", "20", "50", "100", "200", "500", "1000", "2000"]
    assert buckets(registry, "request_prompt_tokens") == [*(f"{n}.0" for n in lengths), "+Inf"]
    assert buckets(registry, "request_params_n") == ["1.0", "2.0", "5.0", "10.0", "20.0", "+Inf"]


def test_an_answer_is_counted_in_each(registry, metrics):
    metrics.count_request(request("length"))
    metrics.count_request(request("abort", choices=None, longest=None))
    assert value(registry, "request_success_total", finished_reason="length") == 1
    assert value(registry, "request_success_total", finished_reason="stop") == 0
    assert value(registry, "http_requests_client_disconnected_total") == 1
    assert value(registry, "prompt_tokens_total") == 200
    assert value(registry, "generation_tokens_total") == 22
    assert value(registry, "prompt_tokens_cached_total") == 128
    assert value(registry, "prompt_tokens_by_source_total", source="local_compute") == 72
    assert value(registry, "prefix_cache_queries_total") == 200
    assert value(registry, "prefix_cache_hits_total") == 128
    assert value(registry, "spec_decode_num_drafts_total") == 6
    assert value(registry, "spec_decode_num_accepted_tokens_total") == 8
    assert value(registry, "time_to_first_token_seconds_sum") == pytest.approx(0.6)
    assert value(registry, "request_inference_time_seconds_sum") == pytest.approx(0.8)
    assert value(registry, "request_prefill_kv_computed_tokens_sum") == 72
    assert value(registry, "request_params_max_tokens_sum") == 32
    # Once a request, whatever the number of its answers.
    assert value(registry, "request_params_n_count") == 1
    assert value(registry, "request_max_num_generation_tokens_sum") == 11


def test_times_that_an_answer_never_had_are_not_counted(registry, metrics):
    none = dict.fromkeys(("ttft", "tpot", "waited", "reading", "writing"))
    metrics.count_request(request("abort", output_tokens=0, max_tokens=0, **none))
    assert value(registry, "e2e_request_latency_seconds_count") == 1
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds"):
        assert value(registry, f"{name}_count") == 0
    assert value(registry, "request_params_max_tokens_count") == 0


def test_load_is_set_and_preemptions_only_grow(registry, metrics):
    metrics.set_load(running=3, waiting=2, kv_usage=0.25, preemptions=4)
    metrics.set_load(running=2, waiting=1, kv_usage=0.5, preemptions=5)
    assert value(registry, "num_requests_running") == 2
    assert value(registry, "num_requests_waiting") == 1
    assert value(registry, "num_requests_waiting_by_reason", reason="capacity") == 1
    assert value(registry, "kv_cache_usage_perc") == 0.5
    assert value(registry, "num_preemptions_total") == 5
    assert value(registry, "engine_sleep_state", sleep_state="awake") == 1
