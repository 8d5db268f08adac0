"""Who sends a request, and what its headers ask for."""

import math
import uuid
from dataclasses import dataclass

from starlette.requests import Request

from server.api.errors import ApiError

_MAX_MS = 1e9
_TTFT, _TPOT = "x-slo-ttft-ms", "x-slo-tpot-ms"


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says of itself outside of its body.

    `client` is a short hash of its API key, or "-". `ttft_ms` and `tpot_ms` are objectives by
    headers; those of the body win.
    """

    request_id: str
    client: str = "-"
    ttft_ms: float | None = None
    tpot_ms: float | None = None


def caller_of(request: Request, id_prefix: str) -> Caller:
    """Return who sends a request. Raise `ApiError` 400 for an objective that is no number above 0.

    The id is the client's `X-Request-Id` if that is plain and short, else a new one that begins
    with `id_prefix`. The key's hash is in the state of the scope, where access control puts it.
    """
    client_id = request.headers.get("x-request-id", "")
    if not (
        client_id and len(client_id) <= 128 and client_id.isascii() and client_id.isprintable()
    ):
        client_id = f"{id_prefix}-{uuid.uuid4().hex}"
    client = str(request.scope.get("state", {}).get("client", "-"))
    return Caller(client_id, client, _milliseconds(request, _TTFT), _milliseconds(request, _TPOT))


def _milliseconds(request: Request, header: str) -> float | None:
    value = request.headers.get(header)
    if value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0 < number <= _MAX_MS:
        raise ApiError(400, f"{header}: must be a number of milliseconds above 0", header)
    return number
