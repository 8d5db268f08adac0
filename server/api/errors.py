"""Error responses: in the envelope of the OpenAI API, or as the route's own API has them."""

import logging
import math
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from server.api.error_envelope import error_body, one_line

log = logging.getLogger(__name__)


class ApiError(Exception):
    """A request gets an error response. `retry_after` is in seconds and becomes a header."""

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


DOES_NOT_FIT = "does_not_fit"
"""The code of a 400 whose fields are right one by one, as the API's description has them."""

UNSUPPORTED = "unsupported_parameter"


def misfit(message: str, param: str | None = None) -> ApiError:
    """Return the error for values that do not fit together, or not with the model."""
    return ApiError(400, message, param, DOES_NOT_FIT)


def unsupported(message: str, param: str) -> ApiError:
    """Return the error for a parameter that would change the answer and is not supported."""
    return ApiError(400, message, param, UNSUPPORTED)


def install(app: FastAPI) -> None:
    """Make the app send every error in the envelope, and log it in one line."""

    def answer(
        request: Request,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JSONResponse:
        body = error_body(request.url.path, status, message, param, code)
        log.info(
            "%s %s: %d %s", request.method, one_line(request.url.path), status, one_line(message)
        )
        return JSONResponse(body, status, headers)

    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> JSONResponse:
        headers = {}
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        return answer(request, error.status, error.message, error.param, error.code, headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body")
        reason = str(first["msg"]).removeprefix("Value error, ")
        message = f"{where}: {reason}" if where else reason
        return answer(request, 400, message, where or None)

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return answer(request, error.status_code, message, headers=error.headers)

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.exception("unhandled error on %s", one_line(request.url.path), exc_info=error)
        message = "internal error; see the server's log"
        return JSONResponse(error_body(request.url.path, 500, message), 500)
