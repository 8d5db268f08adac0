"""Hundreds of hostile requests to a real server: none is a fault of the server's, none stays."""

import asyncio
import json
import random

import httpx

from benchmarks.abuse.cases import CASES
from benchmarks.abuse.connections import Target, exchange
from benchmarks.abuse.every_route import hostile_requests
from benchmarks.abuse.requests import REQUESTS
from benchmarks.support.leftovers import left_behind

_AT_ONCE = 8
_LEAST = 500
_MARK = b"zq7mark"


def send_all(port, payloads):
    """Return the status and body of each answer, in order; `cut` where there is none."""
    target = Target(port, 0, random.Random(0))

    async def send():
        places = asyncio.Semaphore(_AT_ONCE)

        async def one(payload):
            async with places:
                return await exchange(target, payload)

        return await asyncio.gather(*[one(payload) for payload in payloads])

    return asyncio.run(send())


def is_fault(status, body):
    """Whether an answer is a fault of the server, or an error that is no JSON."""
    if status == "cut":
        return False
    if not status.isdigit() or int(status) >= 500:
        return True
    return int(status) >= 400 and not isinstance(json.loads(body), dict)


def test_no_hostile_request_is_a_fault_of_the_server(tiny_server):
    document = httpx.get(f"{tiny_server.url}/openapi.json").json()
    named = list(hostile_requests(document))
    named += [(case.kind, made()) for case in (*CASES, *REQUESTS) for made in case.payloads]
    assert len(named) >= _LEAST
    answers = send_all(tiny_server.port, [payload for _, payload in named])
    faults = [
        (name, status, body[:200])
        for (name, _), (status, body) in zip(named, answers, strict=True)
        if is_fault(status, body)
    ]
    assert faults == []
    assert left_behind(tiny_server) == []
    assert httpx.get(f"{tiny_server.url}/health").status_code == 200


def test_nothing_that_a_client_writes_is_in_a_metric(tiny_server):
    """Every text of a request holds a mark, which no metric shows."""
    mark = _MARK.decode()
    text = json.dumps({
        "prompt": mark, "model": mark, "user": mark, "stop": mark, mark: mark, "max_tokens": 1,
        "messages": [{"role": mark, "content": mark}], "trimtab": {"variant": mark},
        "metadata": {mark: mark}, "priority": mark, "service_tier": mark,
    })  # fmt: skip
    headers = {
        "x-request-id": mark, "user-agent": mark, "x-api-key": mark, "traceparent": mark,
        "content-type": "application/json", "x-slo-ttft-ms": mark,
    }  # fmt: skip
    with httpx.Client(base_url=tiny_server.url, timeout=30) as client:
        for path in client.get("/openapi.json").json()["paths"]:
            client.post(path.replace("{", "").replace("}", ""), content=text, headers=headers)
            client.get(path.partition("{")[0] + mark, headers=headers)
        good = {"prompt": "x", "max_tokens": 1, "user": mark}
        del headers["x-slo-ttft-ms"]  # which has to be a number
        assert client.post("/generate", json=good, headers=headers).status_code == 200
        assert _MARK not in client.get("/metrics").content
