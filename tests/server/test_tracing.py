"""Traces as a receiver of OTLP gets them, decoded by OpenTelemetry's own protocol classes."""

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server.settings import Settings, SettingsError
from server.testing import ServerProcess
from server.tracing import check_packages

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
NOT_SAMPLED = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
SECRET = "opensesame"


class Receiver:
    """A receiver of OTLP over HTTP, which keeps the spans that it gets."""

    def __init__(self):
        self.spans, self.services, self.paths = [], set(), set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.take(self.path, body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, path, body):
        self.paths.add(path)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services.add(attributes(resource.resource)["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans


def attributes(span):
    found = {}
    for pair in span.attributes:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        found[pair.key] = [v.string_value for v in value.values] if kind == "array_value" else value
    return found


@pytest.fixture(scope="module")
def told(varied_folders, tmp_path_factory):
    """What a server told a receiver of a few requests, and the answers that clients got."""
    receiver = Receiver()
    log = tmp_path_factory.mktemp("traces") / "server.log"
    server = ServerProcess(
        "--model", str(varied_folders[0]), log=log, TRIMTAB_THREADS="1",
        TRIMTAB_OTLP_TRACES_ENDPOINT=receiver.url, OTEL_BSP_SCHEDULE_DELAY="100",
        TRIMTAB_SERVED_MODEL_NAME="served,other",
    )  # fmt: skip
    server.wait()
    body = {"prompt": f"hello {SECRET}", "max_tokens": 6, "ignore_eos": True, "seed": 3}
    with httpx.Client(base_url=server.url, timeout=30, headers=SAMPLED) as client:
        answer = client.post("/v1/completions", json={**body, "n": 2}).json()
        chat = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True}
        stream = client.post("/v1/chat/completions", json=chat).text
        wrong = client.post("/v1/completions", json={**body, "temperature": -1})
        client.post(
            "/v1/completions", json=body, headers={"traceparent": SAMPLED["traceparent"][:-1] + "0"}
        )
        client.get("/health"), client.get("/metrics")
        with client.stream(
            "POST", "/v1/completions", json={**body, "max_tokens": 200, "stream": True}
        ) as cut:
            next(cut.iter_lines())
    assert server.stop() == 0
    receiver.server.shutdown()
    return receiver, answer, stream, wrong


def named(spans, start):
    return [span for span in spans if span.name.startswith(start)]


def test_each_request_is_a_span_below_the_one_of_its_traceparent(told):
    receiver, *_ = told
    requests = named(receiver.spans, "POST ")
    assert receiver.paths == {"/v1/traces"}
    assert receiver.services == {"trimtab"}
    assert {span.trace_id.hex() for span in receiver.spans} == {TRACE}
    assert {span.parent_span_id.hex() for span in requests} == {PARENT}
    # Neither the one that its caller does not sample, nor what is no work.
    assert sorted(span.name for span in requests) == [
        "POST /v1/chat/completions",
        *["POST /v1/completions"] * 3,
    ]
    statuses = sorted(attributes(span)["http.response.status_code"] for span in requests)
    assert statuses == [200, 200, 200, 400]


def test_each_answer_is_a_span_with_its_parts_in_order(told):
    receiver, *_ = told
    by_id = {span.span_id: span for span in receiver.spans}
    answers = named(receiver.spans, "text_completion ") + named(receiver.spans, "chat ")
    assert len(answers) == 4
    for answer in answers:
        assert by_id[answer.parent_span_id].name.startswith("POST ")
        parts = [span for span in receiver.spans if span.parent_span_id == answer.span_id]
        parts.sort(key=lambda span: span.start_time_unix_nano)
        assert [part.name for part in parts] == ["queue", "reading", "writing"]
        assert parts[0].start_time_unix_nano == answer.start_time_unix_nano
        for one, following in pairwise(parts):
            assert one.end_time_unix_nano == following.start_time_unix_nano
        request = by_id[answer.parent_span_id]
        assert request.start_time_unix_nano <= answer.start_time_unix_nano
        assert parts[-1].end_time_unix_nano <= answer.end_time_unix_nano


def test_the_attributes_are_those_of_the_answer(told):
    receiver, body, stream, _ = told
    answers = [attributes(span) for span in named(receiver.spans, "text_completion ")]
    whole = [found for found in answers if found["gen_ai.response.finish_reasons"] == ["length"]]
    usage = body["usage"]
    assert [found["gen_ai.response.id"] for found in whole] == [body["id"]] * 2
    assert {span.name for span in named(receiver.spans, "chat ")} == {"chat served"}
    for found in whole:
        assert found["gen_ai.response.model"] == "served"
        assert found["gen_ai.operation.name"] == "text_completion"
        assert found["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
        assert found["gen_ai.usage.output_tokens"] == 6
        assert found["gen_ai.request.choice.count"] == 2
        assert found["gen_ai.request.max_tokens"] == 6
        assert found["trimtab.variant"] == body["trimtab"]["variant"]
        assert 0 < found["gen_ai.latency.time_to_first_token"] < found["gen_ai.latency.e2e"]
    assert sorted(found["gen_ai.request.seed"] for found in whole) == [3, 4]
    (chat,) = [attributes(span) for span in named(receiver.spans, "chat ")]
    assert chat["gen_ai.response.id"] in stream


def test_an_answer_whose_client_left_is_marked_as_failed(told):
    receiver, *_ = told
    failed = [span for span in named(receiver.spans, "text_completion ") if span.status.code == 2]
    assert [attributes(span)["gen_ai.response.finish_reasons"] for span in failed] == [["abort"]]


def test_no_text_of_a_request_is_told(told):
    receiver, *_ = told
    assert SECRET not in str(receiver.spans)


def test_without_the_packages_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"pip install 'trimtab\[otel\]'"):
        check_packages()


@pytest.mark.parametrize("url", ["localhost:4318", "grpc://x:4317", "http://", "http:// x"])
def test_only_an_address_of_http_is_taken(url):
    with pytest.raises(ValueError, match="otlp_traces_endpoint"):
        Settings(otlp_traces_endpoint=url)
