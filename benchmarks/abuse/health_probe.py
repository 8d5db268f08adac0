"""Ask `/health` every 20 ms until stdin ends: `python -m benchmarks.abuse.health_probe PORT`.

A process of its own with one connection of its own, so that nothing a load generator does delays
it. Prints a JSON list of `[due, seconds, status]`: when a question was due (on the monotonic
clock), how long after that its answer was whole, and its status (0 if there was none).
"""

import json
import select
import socket
import sys
import time

PERIOD = 0.02
_TIMEOUT = 10.0


class _Probe:
    """A connection that is opened again when it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port
        self._socket: socket.socket | None = None

    def ask(self) -> int:
        """The status of one answer, read to its end; 0 if none came."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), _TIMEOUT)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(self._request)
            head, body = self._until_head()
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            while len(body) < length:
                body += self._receive()
            return int(head.split(b" ", 2)[1])
        except OSError:
            if self._socket is not None:
                self._socket.close()
            self._socket = None
            return 0

    def _until_head(self) -> tuple[bytes, bytes]:
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, body = received.partition(b"\r\n\r\n")
        return head + b"\r\n", body

    def _receive(self) -> bytes:
        assert self._socket is not None
        if not (found := self._socket.recv(65_536)):
            raise ConnectionError
        return found


def main() -> None:
    """Asks until standard input is closed, then prints."""
    probe = _Probe(int(sys.argv[1]))
    samples: list[tuple[float, float, int]] = []
    due = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        status = probe.ask()
        done = time.monotonic()
        # What was due while an answer did not come would have waited for it, too.
        while due < done:
            samples.append((due, done - due, status))
            due += PERIOD
    print(json.dumps(samples))


if __name__ == "__main__":
    main()
