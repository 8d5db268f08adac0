"""Who sends a request, and what its headers ask for."""

import math
from dataclasses import dataclass, field

from starlette.requests import Request

from server.api.errors import ApiError
from server.api.request_notes import RequestNotes, notes_of

_MAX_MS = 1e9
_TTFT, _TPOT = "x-slo-ttft-ms", "x-slo-tpot-ms"


@dataclass(frozen=True, slots=True)
class Caller:
    """What a request says of itself outside of its body.

    `client` is a short hash of its API key, or "-". `ttft_ms` and `tpot_ms` are objectives by
    headers; those of the body win. `notes` are what else is known of the request.
    """

    request_id: str
    client: str = "-"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    notes: RequestNotes = field(default_factory=RequestNotes, compare=False)


def caller_of(request: Request, id_prefix: str) -> Caller:
    """Return who sends a request. Raise `ApiError` 400 for an objective that is no number above 0.

    The id is the client's `X-Request-Id` if that is plain and short, else a new one that begins
    with `id_prefix`. The key's hash is in the state of the scope, where access control puts it.
    """
    notes = notes_of(request.scope)
    return Caller(
        notes.request_id(id_prefix),
        str(request.scope["state"].get("client", "-")),
        _milliseconds(request, _TTFT),
        _milliseconds(request, _TPOT),
        notes,
    )


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
