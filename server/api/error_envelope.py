"""The envelope of error responses, as the OpenAI API has it."""

_MAX_CHARACTERS = 600  # of a message
_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "unavailable_error"}


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
