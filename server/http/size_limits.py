"""Bounds on the size of a request's head and framing; `IngressMiddleware` bounds the body."""

from server.http.error_response import RejectedError

MAX_FIELDS = 100
MAX_HEAD_BYTES = 64 * 2**10  # of the request line and the header fields
SLICE_BYTES = 16 * 2**10  # parsed at once
_MAX_FRAMING_PER_BODY_BYTE = 0.25  # so chunks have 24 bytes or more: each costs time
_TOO_LARGE = f"the headers are larger than {MAX_HEAD_BYTES} bytes"


class MessageSizeLimits:
    """Counts what has come of one message. Each method raises `RejectedError` if it is too much."""

    def __init__(self, in_head: bool) -> None:
        self.in_head = in_head
        self._fields = 0
        self._head = 0  # bytes, until it ends
        self._framing = 0  # bytes that are neither head nor body
        self._body = 0

    def field(self) -> None:
        """Count a header field or trailer."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise RejectedError(431, f"more than {MAX_FIELDS} header fields")

    def head(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """Check the complete head."""
        if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
            raise RejectedError(431, _TOO_LARGE)
        self.in_head = False

    def body(self, count: int) -> None:
        """Count bytes of the body."""
        self._body += count
        self._framing -= count

    def parsed(self, count: int) -> None:
        """Count a parsed slice, some of which may belong to the message before."""
        if self.in_head:
            self._head += count
            if self._head > MAX_HEAD_BYTES + SLICE_BYTES:
                raise RejectedError(431, _TOO_LARGE)
        else:
            self._framing += count
            if (
                self._framing
                > MAX_HEAD_BYTES + SLICE_BYTES + _MAX_FRAMING_PER_BODY_BYTE * self._body
            ):
                raise RejectedError(400, "the chunks of the body hold too little of it")
