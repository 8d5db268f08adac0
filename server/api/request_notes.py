"""What is known of one HTTP request: its id, its place in the queue, its answer."""

import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import Scope

    from server.api.active_request import ActiveRequest
    from server.engine.waiting_room import QueuePlace

_MAX_ID_CHARACTERS = 128
_NOTES = "notes"
ID_HEADER = b"x-request-id"


@dataclass(slots=True)
class RequestNotes:
    """Notes on a request, from its first byte to its last.

    `client_id` is the id that the client gave it; `unique` is the server's. `arrived` is by
    `time.monotonic`. `place` is kept in the queue while its prompts are made, and `active` is set
    once it was decided on.
    """

    client_id: str | None = None
    unique: str = field(default_factory=lambda: uuid.uuid4().hex)
    arrived: float = field(default_factory=time.monotonic)
    place: "QueuePlace | None" = None
    active: "ActiveRequest | None" = None

    def request_id(self, prefix: str) -> str:
        """Return the client's id, or else the server's with a prefix."""
        return self.client_id or f"{prefix}-{self.unique}"

    def give_up_place(self) -> None:
        """Give up the place in the queue, if one is kept."""
        if self.place is not None:
            self.place.give_up()
            self.place = None


def notes_of(scope: "Scope") -> RequestNotes:
    """Return the notes on a request, which begin with the first call."""
    state = scope.setdefault("state", {})
    if _NOTES not in state:
        state[_NOTES] = RequestNotes(client_id_of(scope["headers"]))
    notes: RequestNotes = state[_NOTES]
    return notes


def client_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the `X-Request-Id` among some headers if it is a plain short one, else None."""
    for name, value in headers:
        if name.lower() == ID_HEADER and 0 < len(value) <= _MAX_ID_CHARACTERS:
            text = value.decode("latin-1")
            return text if text.isascii() and text.isprintable() else None
    return None
