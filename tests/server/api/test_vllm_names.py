"""A live server's metrics under vLLM's names count what its clients were answered."""

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families


@pytest.fixture
def client(varied_server):
    varied_server.wait_until_idle()
    with httpx.Client(base_url=varied_server.url, timeout=30) as client:
        yield client


def totals(client):
    """Return the sum of each metric over its labels but the reason that an answer ended."""
    found = {}
    families = text_string_to_metric_families(client.get("/metrics").text)
    for sample in (sample for family in families for sample in family.samples):
        reason = sample.labels.get("finished_reason")
        key = sample.name.removeprefix("vllm:") + (f":{reason}" if reason else "")
        found[key] = found.get(key, 0) + sample.value
    return found


def test_what_clients_get_is_counted_under_the_names_of_vllm(client, varied_server):
    body = {"prompt": "hello there", "max_tokens": 9, "ignore_eos": True, "n": 2}
    before = totals(client)
    answer = client.post("/v1/completions", json=body).json()
    stop = answer["choices"][0]["text"][:1]
    client.post("/v1/completions", json={**body, "n": 1, "seed": 1, "stop": [stop or "e"]})
    long = {**body, "n": 1, "max_tokens": 200, "stream": True}
    with client.stream("POST", "/v1/completions", json=long) as stream:
        next(stream.iter_lines())
    varied_server.wait_until_idle()
    after = totals(client)
    grown = {name: after[name] - before.get(name, 0) for name in after}
    usage = answer["usage"]
    assert grown["request_success_total:length"] + grown["request_success_total:stop"] == 3
    assert grown["request_success_total:length"] >= 2
    assert grown["request_success_total:abort"] == 1
    assert grown["http_requests_client_disconnected_total"] == 1
    assert grown["prompt_tokens_total"] == 4 * usage["prompt_tokens"]
    assert grown["generation_tokens_total"] > usage["completion_tokens"]
    assert grown["prefix_cache_queries_total"] == grown["prompt_tokens_total"]
    assert grown["request_params_n_count"] == 3
    assert grown["request_params_n_sum"] == 4
    assert grown["e2e_request_latency_seconds_count"] == 4
    assert grown["iteration_tokens_total_sum"] >= grown["generation_tokens_total"] - 4
    # Every token but the first of an answer has a gap before it, or came in the same step.
    gaps = grown["inter_token_latency_seconds_count"]
    assert 8 < gaps <= grown["generation_tokens_total"] - 3
    assert 0 < grown["inter_token_latency_seconds_sum"] < grown["e2e_request_latency_seconds_sum"]


def test_the_cache_of_the_server_is_described(client):
    text = client.get("/metrics").text
    info = next(line for line in text.splitlines() if line.startswith("vllm:cache_config_info{"))
    assert 'block_size="64"' in info
    assert 'engine="0"' in info
    assert 'num_gpu_blocks="' in info


def test_only_a_server_that_was_asked_to_has_them(tiny_server):
    assert "vllm:" not in httpx.get(f"{tiny_server.url}/metrics").text
