"""JSON bodies, whose values are counted before they are parsed.

The parser blocks the event loop, and takes long for a small body of very many values.
"""

from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.api.errors import ApiError

# What a body may hold. Only prompts of token ids need very many values.
MAX_VALUES = 2**18
MAX_STRINGS = 2**16
MAX_CONTAINERS = 2**15  # lists and objects
MAX_FIELDS = 256  # of the body itself
_NOT_COUNTED = bytes(set(range(256)) - set(b',"[{'))


def parse(body: bytes) -> object:
    """Return the JSON value in `body`.

    Raise `ApiError` 400 if it is no JSON, which includes text that is not UTF-8, half a surrogate
    pair and NaN, and if it has a number of more than 4,300 digits, is nested more than 200 deep,
    or has too many values.
    """
    _check_counts(body)
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error


class JsonRoute(APIRoute):
    """A route whose body is parsed by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, which gets the parsed body."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            _check_type(request.headers.get("content-type", ""))
            parsed = _JsonRequest(request.scope, request.receive)
            value = await parsed.json()  # before FastAPI, which hides errors of the parser
            if isinstance(value, dict) and len(value) > MAX_FIELDS:
                raise ApiError(400, f"the body has more than {MAX_FIELDS} fields")
            return await handler(parsed)

        return handle


class _JsonRequest(Request):
    """A request that parses its body by `parse`, once."""

    async def json(self) -> object:
        """Return the JSON value of the body. Raise `ApiError` 400."""
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


def _check_type(content_type: str) -> None:
    """Raise `ApiError` 415 unless the type is JSON: forms of any web page could send others."""
    media = content_type.partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ApiError(415, "the body must be JSON, sent with Content-Type: application/json")


def _check_counts(body: bytes) -> None:
    """Raise `ApiError` 400 for more values than a body may hold.

    First all marks of values are counted, then only those outside of strings.
    """
    if _within_bounds(body.translate(None, _NOT_COUNTED)):
        return
    if body.count(b"\\") <= MAX_VALUES:
        # Without escapes, strings lie between a quotation mark at an even position and the next.
        marks = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NOT_COUNTED)
        outside_strings = b"".join(marks.split(b'"')[::2])
        if marks.count(b'"') <= 2 * MAX_STRINGS and _within_bounds(outside_strings):
            return
    raise ApiError(
        400,
        f"the body holds more than {MAX_VALUES} values, {MAX_STRINGS} strings, or "
        f"{MAX_CONTAINERS} lists and objects",
    )


def _within_bounds(marks: bytes) -> bool:
    """Whether commas, quotation marks and opening brackets are few enough."""
    return (
        marks.count(b",") < MAX_VALUES
        and marks.count(b'"') <= 2 * MAX_STRINGS
        and marks.count(b"[") + marks.count(b"{") <= MAX_CONTAINERS
    )
