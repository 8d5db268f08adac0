"""JSON bodies, counted before they are parsed: a parser holds the event loop while it works."""

from collections.abc import Callable, Coroutine
from typing import Any

import pydantic_core
from fastapi import Request, Response
from fastapi.routing import APIRoute

from server.api.errors import ApiError

# What a body may hold. Prompts of token ids need many values, nothing needs many of the others.
MOST_VALUES = 2**18
MOST_STRINGS = 2**16
MOST_CONTAINERS = 2**15  # lists and objects
MOST_FIELDS = 256  # of the body itself
_NO_MARKS = bytes(set(range(256)) - set(b',"[{'))


def parse(body: bytes) -> object:
    """The JSON value in `body`.

    Raises `ApiError` 400 where it is no JSON: not UTF-8, half a surrogate pair, NaN, a number of
    more than 4,300 digits, nested more than 200 deep, or of too many values.
    """
    _count(body)
    try:
        return pydantic_core.from_json(body, allow_inf_nan=False, cache_strings="keys")
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error


class JsonRoute(APIRoute):
    """A route whose body is parsed by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler that FastAPI makes, behind our parser."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            _check_type(request.headers.get("content-type", ""))
            parsed = _ParsedRequest(request.scope, request.receive)
            found = await parsed.json()  # here: FastAPI hides what goes wrong within its call
            if isinstance(found, dict) and len(found) > MOST_FIELDS:
                raise ApiError(400, f"the body has more than {MOST_FIELDS} fields")
            return await handler(parsed)

        return handle


class _ParsedRequest(Request):
    async def json(self) -> object:
        if not hasattr(self, "_json"):
            self._json = parse(await self.body())
        return self._json


def _check_type(given: str) -> None:
    """Raise `ApiError` 400 for a body that is not said to be JSON: a form of any page could be."""
    media = given.partition(";")[0].strip().lower()
    if media != "application/json" and not media.endswith("+json"):
        raise ApiError(400, "the body must be JSON, sent with Content-Type: application/json")


def _count(body: bytes) -> None:
    """Raise `ApiError` for more values than a body may hold. Text in strings does not count."""
    if _within(body.translate(None, _NO_MARKS)):
        return
    if body.count(b"\\") <= MOST_VALUES:
        # What is escaped, and what then lies between an even quotation mark and the next, is text.
        bare = body.replace(rb"\\", b"").replace(rb"\"", b"").translate(None, _NO_MARKS)
        if bare.count(b'"') <= 2 * MOST_STRINGS and _within(b"".join(bare.split(b'"')[::2])):
            return
    raise ApiError(
        400,
        f"the body holds more than {MOST_VALUES} values, {MOST_STRINGS} strings, or "
        f"{MOST_CONTAINERS} lists and objects",
    )


def _within(marks: bytes) -> bool:
    return (
        marks.count(b",") < MOST_VALUES
        and marks.count(b'"') <= 2 * MOST_STRINGS
        and marks.count(b"[") + marks.count(b"{") <= MOST_CONTAINERS
    )
