"""Hostile requests to every route that a server's `/openapi.json` names, whatever it does."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.abuse.cases import JSON, request

_DEEP, _LONG_NUMBER = 5000, 4000
_VALUES = (
    "null", "true", "-1", "1e400", "-0.0", "9" * _LONG_NUMBER, "1e-400", "NaN", '""', '"\\u0000"',
    '"\\ud800"', '"\\udfff\\ud800"', "[]", "{}", "[[]]", '[null, 0, "", []]', '{"": {"": 0}}',
    '{"\\ud800": 1}', f'"{"x" * 100_000}"', "[" * 300 + "]" * 300, '{"a":' * 300 + "1" + "}" * 300,
    f"[{'0,' * 70_000}0]", f"[{'[],' * 70_000}0]",
)  # fmt: skip
"""JSON values, or what looks like one, that each field of a body gets in turn."""
_BODIES = (
    "", "\0", "{", "}", "null", "[]", "0", '""', '{"a": 1,}', '{"a" 1}', "{'a': 1}", "nul",
    '{"a": "\n"}', '{"a": "\\x41"}', "\ufeff{}", "[" * _DEEP, '{"":' * _DEEP, "1" * _LONG_NUMBER,
)  # fmt: skip
"""Whole bodies that are no object."""
_SEGMENTS = (
    "%00", "%ff", "%ed%a0%80", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "a%0d%0aX: 1",
    "%f0%9f%99%82", "x" * 5000, "'%22%3Cscript%3E", "%25%32%65",
)  # fmt: skip
"""What may stand for a parameter in a path, or behind a path."""


def hostile_requests(document: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each request."""
    for path, operations in document["paths"].items():
        if "post" in operations:
            for name, body in _bodies(document, operations["post"]):
                yield f"{path}: {name}", request("POST", path, body, JSON)
        for segment in _SEGMENTS:
            target = f"{path.partition('{')[0].rstrip('/')}/{segment}"
            yield f"GET {target[:80]}", request("GET", target)
            yield f"query of {path}", request("GET", f"{path.partition('{')[0]}?a={segment}")
        for method in ("DELETE", "PATCH", "TRACE", "OPTIONS"):
            yield f"{method} {path}", request(method, path.partition("{")[0])


def _bodies(document: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield bodies that are no object, then objects with one hostile value each."""
    for text in _BODIES:
        yield text[:20], text.encode()
    fields = _fields(document, operation)
    needed = {name: _example(name) for name in fields}
    for at, name in enumerate(fields):
        for value in _VALUES[at % 3 :: 3]:
            rest = {key: given for key, given in needed.items() if given is not None}
            rest.pop(name, None)
            others = "".join(f", {json.dumps(key)}: {text}" for key, text in rest.items())
            yield f"{name} = {value[:20]}", f"{{{json.dumps(name)}: {value}{others}}}".encode()


def _fields(document: dict[str, Any], operation: dict[str, Any]) -> list[str]:
    """Return the names of a body's fields, and those of the objects that may stand for it."""
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    waiting, names = [body], dict[str, None]()
    while waiting:
        schema = waiting.pop()
        if "$ref" in schema:
            waiting.append(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]])
        waiting += [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        names |= dict.fromkeys(schema.get("properties", ()))
    return list(names)


def _example(name: str) -> str | None:
    """Return a small value of a field that most bodies need, as JSON; None for other fields."""
    message = '[{"role": "user", "content": "hi"}]'
    return {"messages": message, "prompt": '"hi"', "input": '"hi"', "max_tokens": "2"}.get(name)
