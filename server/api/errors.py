"""Errors on the wire: the OpenAI envelope, whatever went wrong."""

import logging
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)

_LONGEST = 600  # characters of a message
_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "unavailable_error"}


class ApiError(Exception):
    """An answer with an error status. `retry_after` in seconds becomes a header."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after


def envelope(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """The body of an error answer. Its texts are of bounded length and can be encoded."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = None if param is None else plain(param)
    return {"error": {"message": plain(message), "type": kind, "param": param, "code": code}}


def plain(text: str) -> str:
    """One line of at most 600 characters; those that cannot be shown or sent are escaped."""
    line = " ".join(text[:_LONGEST].split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)[:_LONGEST]


def install(app: FastAPI) -> None:
    """Makes every error of the app come out in the envelope, with one line in the log."""

    def answer(
        request: Request,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:
        body = envelope(status, message, param, code)
        log.info("%s %s: %d %s", request.method, plain(request.url.path), status, plain(message))
        return JSONResponse(body, status, headers)

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> JSONResponse:
        headers = {}
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(error.retry_after)))
        return answer(request, error.status, error.message, error.param, error.code, headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        found = str(first["msg"]).removeprefix("Value error, ")
        message = f"{where}: {found}" if where else found
        return answer(request, 400, message, where or None)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return answer(request, error.status_code, message, headers=error.headers)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.exception("unhandled error on %s", plain(request.url.path), exc_info=error)
        return JSONResponse(envelope(500, "internal error; see the server's log"), 500)
