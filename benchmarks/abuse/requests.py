"""Hostile requests for `benchmarks.abuse`, as data: what is odd or wrong about the HTTP itself."""

import gzip
from collections.abc import Callable
from functools import partial

from benchmarks.abuse.cases import BAD, FINE, HOST, JSON, MISSING, Case, request

ASK = b'{"prompt": "x", "max_tokens": 4}'
CUT = frozenset({"cut"})
"""The server closed the connection and said nothing, or nothing that could still be read."""
REFUSED = frozenset({"400", "413", "431"}) | CUT
_ODD = frozenset({"200", "400"})


def _raw(kind: str, expected: frozenset[str], *payloads: bytes | Callable[[], bytes]) -> Case:
    """Whole payloads; what is no HTTP need not be answered with an envelope."""
    made = tuple(p if callable(p) else partial(bytes, p) for p in payloads)
    return Case(kind, made, expected, enveloped=False)


def _asked(kind: str, expected: frozenset[str], *headers: dict[str, str]) -> Case:
    """A good request to `/generate` with odd headers."""
    made = (partial(request, "POST", "/generate", ASK, JSON | fields) for fields in headers)
    return Case(kind, tuple(made), expected)


def _got(kind: str, expected: frozenset[str], *paths: str, method: str = "GET") -> Case:
    return Case(kind, tuple(partial(request, method, path) for path in paths), expected)


def _head(*lines: bytes, body: bytes = b"", version: bytes = b"HTTP/1.1") -> bytes:
    """A request to `/generate` with exactly these header lines."""
    start = [b"POST /generate " + version, b"Host: " + HOST, b"Content-Type: application/json"]
    return b"\r\n".join([*start, *lines, b"", b""]) + body


def _length(value: bytes) -> bytes:
    return _head(b"Content-Length: " + value, b"Connection: close", body=ASK)


def _chunked(body: bytes, *more: bytes) -> bytes:
    return _head(b"Transfer-Encoding: chunked", b"Connection: close", *more, body=body)


def _bomb() -> bytes:
    """64 MB of spaces behind a prompt, in 64 kB."""
    packed = gzip.compress(ASK + b" " * 64_000_000)
    return request("POST", "/generate", packed, JSON | {"Content-Encoding": "gzip"})


REQUESTS: tuple[Case, ...] = (
    # Headers
    _raw("64 MB in one header", REFUSED, lambda: _head(b"X-A: " + b"a" * 64_000_000)),
    _raw("1,000 headers", REFUSED,
         _head(*(b"X-%d: 1" % i for i in range(1000)), b"Content-Length: 32", body=ASK)),
    _raw("100,000 headers", REFUSED,
         lambda: _head(*(b"X-%d: 1" % i for i in range(100_000)), b"Content-Length: 32")),
    _raw("broken headers", _ODD | REFUSED, _head(b"no colon here"), _head(b": no name"),
         _head(b"X-A: a\0b"), _head(b"X-A: a\rb"), _head(b"X A: 1", b"Content-Length: 0"),
         _head(b"X-A: 1", b" folded: 2", b"Content-Length: 32", b"Connection: close", body=ASK)),
    _asked("other hosts", frozenset({"403"}), {"Host": "evil.example"}, {"Host": "127.0.0.1.evil"},
           {"Host": "localhost.evil:8000"}),
    _raw("no host, two hosts, odd hosts", BAD | {"403"},
         b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n",
         b"GET /health HTTP/1.1\r\nHost: a\r\nHost: " + HOST + b"\r\nConnection: close\r\n\r\n",
         b"GET /health HTTP/1.1\r\nHost: \xff\xfe\r\nConnection: close\r\n\r\n"),
    _asked("foreign origins", frozenset({"403"}), {"Origin": "https://evil.example"},
           {"Origin": "null"}, {"Origin": "http://127.0.0.1.evil.example"}),
    _asked("odd request ids", FINE, {"X-Request-Id": "a" * 5000}, {"X-Request-Id": "\u00e9\u00ff"},
           {"X-Request-Id": "{{7*7}}"}, {"X-Request-Id": "same"}, {"X-Request-Id": "same"}),
    _asked("odd content types", _ODD | {"415", "422"}, {"Content-Type": "text/plain"},
           {"Content-Type": "application/x-www-form-urlencoded"}, {"Content-Type": ""},
           {"Content-Type": "multipart/form-data; boundary=x"},
           {"Content-Type": "application/json; charset=utf-7"}, {"Content-Type": "a" * 9000}),
    _raw("packed bodies", BAD | {"413", "415"}, _bomb),
    # Paths and methods
    _got("path traversal", MISSING, "/../../etc/passwd", "/v1/models/../../../etc/passwd",
         "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/page/../../server/app.py", "//etc/passwd"),
    _got("paths that are no text", MISSING | BAD, "/%ff%fe", "/v1/models/%ff", "/v1/models/%00",
         "/%ed%a0%80", "/%", "/%zz", "/v1/models/%0d%0aX-A:%201"),
    _got("long paths", MISSING | BAD | {"414", "431"} | CUT, "/" + "a" * 60_000,
         "/v1/models/" + "a/" * 50_000, "/health?" + "a=1&" * 40_000),
    _got("unknown methods", frozenset({"400", "404", "405", "501"}), "/generate", "/health",
         "/v1/chat/completions", method="DELETE"),
    _raw("methods of nobody", frozenset({"400", "404", "405", "501"}) | CUT, request("BREW", "/"),
         request("TRACE", "/health"), request("PROPFIND", "/"), request("get", "/health"),
         request("CONNECT", "evil.example:443"), request("A" * 10_000, "/")),
    _raw("requests for a proxy", _ODD | {"403", "404"}, request("GET", "http://evil.example/"),
         request("GET", "http://evil.example/health"), request("OPTIONS", "*")),
    # Versions and other protocols
    _raw("HTTP/1.0", FINE | BAD, b"GET /health HTTP/1.0\r\n\r\n",
         _head(b"Content-Length: 32", body=ASK, version=b"HTTP/1.0")),
    _raw("versions of nobody", BAD | CUT | {"505"}, b"GET /health\r\n\r\n",
         b"GET /health HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1.1\r\n\r\n",
         b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"),
    _raw("other protocols", BAD | CUT, b"SSH-2.0-OpenSSH_9.6\r\n", b"EHLO evil.example\r\n\r\n",
         b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
         bytes(range(255, -1, -1)) * 40, b"\0" * 5000, b"*1\r\n$4\r\nPING\r\n"),
    _asked("offers of another protocol", _ODD | {"403", "426"},
           {"Upgrade": "websocket", "Connection": "Upgrade, close", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="},
           {"Upgrade": "h2c", "Connection": "Upgrade, close"}),
    # Lengths of bodies
    _raw("absurd lengths", REFUSED, _length(b"99999999999"), _length(b"9" * 40), _length(b"-1"),
         _length(b"abc"), _length(b"0x20"), _length(b""), _length(b"32, 33"),
         _length(b"32\r\nContent-Length: 33")),
    _raw("bodies in broken chunks", REFUSED, _chunked(b"zz\r\n" + ASK + b"\r\n0\r\n\r\n"),
         _chunked(b"-5\r\nhello\r\n0\r\n\r\n"), _chunked(b"fffffffffffffffff\r\n" + ASK),
         _chunked(b"20\r\n" + ASK + b"XX\r\n0\r\n\r\n"),
         _chunked(b"20;" + b"e" * 90_000 + b"\r\n")),
    _raw("two lengths of one body", BAD | CUT,
         _chunked(b"20\r\n" + ASK + b"\r\n0\r\n\r\n", b"Content-Length: 5"),
         _chunked(b"0\r\n\r\n", b"Transfer-Encoding: identity")),
    _raw("bodies of tiny chunks", _ODD | CUT | {"413"}, lambda: _chunked(
        b"".join(b"1\r\n%c\r\n" % byte for byte in ASK) + b"0\r\n\r\n"),
        lambda: _chunked(b"1\r\n \r\n" * 400_000 + b"0\r\n\r\n")),
    _raw("chunks beyond the limit", frozenset({"413"}) | CUT,
         lambda: _chunked((b"100000\r\n" + b" " * 2**20 + b"\r\n") * 8)),
    _asked("expectations", _ODD | {"417"}, {"Expect": "100-continue"}, {"Expect": "a miracle"}),
)  # fmt: skip
