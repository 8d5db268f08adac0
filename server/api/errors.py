"""Errors on the wire: the OpenAI envelope, whatever went wrong."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log = logging.getLogger(__name__)

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
    """The body of an error answer."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def install(app: FastAPI) -> None:
    """Makes every error of the app come out in the envelope."""

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> JSONResponse:
        headers = {}
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(error.retry_after)))
        body = envelope(error.status, error.message, error.param, error.code)
        return JSONResponse(body, error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        if first["type"] == "json_invalid":
            return JSONResponse(envelope(400, "the body is not valid JSON"), 400)
        message = f"{where}: {first['msg']}" if where else str(first["msg"])
        return JSONResponse(envelope(400, message, where or None), 400)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(envelope(error.status_code, message), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.exception("unhandled error on %s", request.url.path, exc_info=error)
        return JSONResponse(envelope(500, "internal error; see the server's log"), 500)
