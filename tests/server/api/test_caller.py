"""What is read from a request's headers."""

import pytest
from starlette.requests import Request

from server.api.caller import caller_of
from server.api.errors import ApiError


def _request(state=None, **headers):
    pairs = [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()]
    return Request({"type": "http", "headers": pairs, "state": state or {}})


def test_the_headers_tell_the_id_the_objectives_and_access_control_the_client():
    caller = caller_of(
        _request(
            {"client": "ab12"}, x_request_id="mine-1", x_slo_ttft_ms="250", x_slo_tpot_ms="2e1"
        ),
        "cmpl",
    )
    assert (caller.request_id, caller.client) == ("mine-1", "ab12")
    assert (caller.ttft_ms, caller.tpot_ms) == (250, 20)


@pytest.mark.parametrize("given", [None, "", "x" * 129, "ä", "a\tb"])
def test_a_request_without_a_plain_short_id_gets_one(given):
    headers = {} if given is None else {"x_request_id": given}
    found = {caller_of(_request(**headers), "cmpl").request_id for _ in range(2)}
    assert len(found) == 2
    assert all(name.startswith("cmpl-") for name in found)
    assert caller_of(_request(), "cmpl").client == "-"


@pytest.mark.parametrize("text", ["", "soon", "0", "-1", "nan", "inf", "1e999", "1,5", "1e10"])
@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms"])
def test_an_objective_that_is_no_number_above_0_is_refused(name, text):
    with pytest.raises(ApiError, match=f"^{name}: ") as raised:
        caller_of(_request(**{name.replace("-", "_"): text}), "cmpl")
    assert (raised.value.status, raised.value.param) == (400, name)
