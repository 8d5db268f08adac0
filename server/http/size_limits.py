"""How large a request may be apart from its body, whose size is for `IngressMiddleware`."""

from server.http.error_response import RejectedError

MAX_FIELDS = 100
MAX_HEAD_BYTES = 64 * 2**10  # of the request line and the headers
SLICE = 16 * 2**10  # bytes parsed at once
_FRAMING_PER_BYTE = 0.25  # chunks of 24 bytes and more, since each costs time
_TOO_LARGE = f"the headers are larger than {MAX_HEAD_BYTES} bytes"


class MessageSizeLimits:
    """Counts what comes of one message; each method raises `RejectedError` if it is too much."""

    def __init__(self, in_head: bool) -> None:
        self.in_head = in_head
        self._fields = 0
        self._head = 0  # bytes, while it has not ended
        self._framing = 0  # bytes that are neither head nor body
        self._body = 0

    def field(self) -> None:
        """A header came in, or one behind the body."""
        self._fields += 1
        if self._fields > MAX_FIELDS:
            raise RejectedError(431, f"more than {MAX_FIELDS} header fields")

    def head(self, url: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        """The head has come in whole."""
        if len(url) + sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
            raise RejectedError(431, _TOO_LARGE)
        self.in_head = False

    def body(self, count: int) -> None:
        """Bytes of the body came in."""
        self._body += count
        self._framing -= count

    def parsed(self, count: int) -> None:
        """A slice was parsed; some of it may be of the message before."""
        if self.in_head:
            self._head += count
            if self._head > MAX_HEAD_BYTES + SLICE:
                raise RejectedError(431, _TOO_LARGE)
        else:
            self._framing += count
            if self._framing > MAX_HEAD_BYTES + SLICE + _FRAMING_PER_BYTE * self._body:
                raise RejectedError(400, "the chunks of the body hold too little of it")
