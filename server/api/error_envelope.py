"""The bodies of error responses: OpenAI's envelope, and those of other APIs on their paths."""

_MAX_CHARACTERS = 600  # of a message
_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "unavailable_error"}
_ANTHROPIC_PATH, _OLLAMA_PATHS = "/v1/messages", "/api/"
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(
    path: str, status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """Return the body of an error response of a route, as the clients of its API expect it."""
    if path == _ANTHROPIC_PATH or path.startswith(f"{_ANTHROPIC_PATH}/"):
        return anthropic_error(status, message, code)
    if path.startswith(_OLLAMA_PATHS):
        return {"error": one_line(message), **({} if code is None else {"code": code})}
    return envelope(status, message, param, code)


def anthropic_error(status: int, message: str, code: str | None = None) -> dict[str, object]:
    """Return the body of an error response as Anthropic's API has it, and OpenAI's `code`."""
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    error = {"type": kind, "message": one_line(message)}
    return {"type": "error", "error": error if code is None else {**error, "code": code}}


def envelope(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """Return the body of an error response. Its texts are short and can always be encoded."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    param = None if param is None else one_line(param)
    return {"error": {"message": one_line(message), "type": kind, "param": param, "code": code}}


def one_line(text: str) -> str:
    """Return a text as one line of at most 600 characters, the unprintable ones escaped."""
    line = " ".join(text[:_MAX_CHARACTERS].split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)[:_MAX_CHARACTERS]
