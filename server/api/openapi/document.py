"""`GET /openapi.json`: all routes with their bodies, answers, errors and keys, as they are."""

from importlib import metadata
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse

from server.api.access.scopes import Scope
from server.api.openapi.adapter_answers import (
    ADAPTER_ANSWERS,
    ADAPTER_SCHEMAS,
    error_schema,
)
from server.api.openapi.answers import ANSWERS, SCHEMAS
from server.api.openapi.limits import ModelLimits, state_limits

Json = dict[str, Any]

_DESCRIPTION = (
    "Errors have the form of the route's own API. Tags are the scopes that a key needs. Each field "
    "is described by itself: values that do not fit together, or not with the model, get 400 with "
    "the code `does_not_fit` or `context_length_exceeded`. Unknown fields are ignored; what would "
    "change the answer and is not supported gets 400 with the code `unsupported_parameter`."
)
_ERRORS = {
    400: "Something in the request is wrong, does not fit or is not supported.",
    401: "A valid API key is needed.",
    403: "The key lacks the scope, or the page or the host name is not let in.",
    404: "There is no such route or model.",
    405: "The route has not this method.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not sent as `application/json`.",
    431: "The headers are too large.",
    500: "A fault of the server, whose log has the rest.",
    503: "Full, too late, loading, stopping or broken.",
}
_OF_BODIES = {404, 408, 413, 415}
"""Errors that only requests with a body get, but for 404, which paths with a parameter get too."""
_UNDESCRIBED: dict[str, Json] = {"application/json": {}}
_KEYS: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
}
_RETRY: Json = {
    "Retry-After": {
        "description": "Seconds after which it is worth another try.",
        "schema": {"type": "integer", "minimum": 1},
    }
}
_CHALLENGE: Json = {"WWW-Authenticate": {"description": "`Bearer`.", "schema": {"type": "string"}}}


def router(app: FastAPI, has_keys: bool, limits: ModelLimits) -> APIRouter:
    """Return the route of `GET /openapi.json`. `has_keys`: whether requests need a key."""
    routes = APIRouter()
    made: Json = {}

    @routes.get("/openapi.json", include_in_schema=False)
    async def document() -> JSONResponse:
        if not made:
            made.update(describe(app, has_keys, limits))
        return JSONResponse(made)

    return routes


def describe(app: FastAPI, has_keys: bool, limits: ModelLimits) -> Json:
    """Return the description of an application's routes, in OpenAPI 3.1."""
    document: Json = get_openapi(
        title=app.title,
        version=metadata.version("trimtab"),
        description=_DESCRIPTION,
        routes=app.routes,
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):  # which nothing sends
        schemas.pop(name, None)
    bodies = state_limits(schemas, limits.keywords())
    document["components"]["schemas"] = bodies | SCHEMAS | ADAPTER_SCHEMAS
    if has_keys:
        document["components"]["securitySchemes"] = _KEYS
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, path, method, has_keys)
    return document


def _complete(operation: Json, path: str, method: str, has_keys: bool) -> None:
    """Add answers, errors and keys to what FastAPI says of an operation."""
    is_open = Scope.PUBLIC in operation.get("tags", ())
    if has_keys:
        operation["security"] = [] if is_open else [{name: []} for name in _KEYS]
    answers: Json = {}
    operation["responses"] = answers
    if method == "head":
        answers["200"] = {"description": "As for GET, without a body."}
    else:
        found = (ANSWERS | ADAPTER_ANSWERS).get(path, _UNDESCRIBED)
        content = {kind: {"schema": schema} for kind, schema in found.items()}
        answers["200"] = {"description": "The answer.", "content": content}
    has_body = "requestBody" in operation
    for status, meaning in _ERRORS.items():
        if status in _OF_BODIES and not (has_body or (status == 404 and "{" in path)):
            continue
        if status == 401 and (is_open or not has_keys):
            continue
        answers[str(status)] = _error(status, meaning, path, method)


def _error(status: int, meaning: str, path: str, method: str) -> Json:
    headers = {503: _RETRY, 401: _CHALLENGE}.get(status)
    error: Json = {"description": meaning, **({"headers": headers} if headers else {})}
    if method != "head":
        schema = error_schema(path, status)
        if path == "/health" and status == 503:
            schema = {"anyOf": [schema, {"$ref": "#/components/schemas/Loading"}]}
        error["content"] = {"application/json": {"schema": schema}}
    return error
