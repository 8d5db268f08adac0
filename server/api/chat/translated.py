"""Chats that come in another wire format: their fields become a `ChatBody`."""

from collections.abc import Mapping

from pydantic import ValidationError

from server.api.chat.body import ChatBody
from server.api.errors import misfit


def chat_body(fields: Mapping[str, object]) -> ChatBody:
    """Return the body of a chat with these fields; those that are None are left out.

    Raise `ApiError` 400 for what no chat may have.
    """
    try:
        return ChatBody.model_validate({k: v for k, v in fields.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise misfit(f"{where}: {reason}" if where else reason, where or None) from error


def join(parts: list[str]) -> str:
    """Return the texts of several parts as one, each on a line of its own."""
    return "\n".join(parts)
