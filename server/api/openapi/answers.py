"""What successful answers look like, as JSON schemas, by path and content type."""

from typing import Any

Json = dict[str, Any]


def _object(required: Json, optional: Json | None = None, **more: object) -> Json:
    """Return the schema of an object with fields that are always there, and some that may be."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}
_ANY: Json = {"type": "object"}
_EVENTS: Json = {"description": "Server-sent events, the last one `[DONE]`."}
_FINISH: Json = {"enum": ["stop", "length", "tool_calls", "abort", "error", None]}
_HEAD: Json = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "system_fingerprint": _TEXT}
_COMMON: Json = {
    "index": _COUNT,
    "finish_reason": _FINISH,
    "stop_reason": {"type": ["string", "integer", "null"]},
    "logprobs": _or_null(_ANY),
}

SCHEMAS: Json = {
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": _or_null(_TEXT),
                    "code": {"type": ["string", "integer", "null"]},
                }
            )
        }
    ),
    "Loading": _object({"status": _TEXT, "stage": _or_null(_TEXT), "progress": _or_null(_NUMBER)}),
    "Usage": _object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT}
    ),
    "Decision": _object({"variant": _TEXT, "policy": _TEXT, "reason": _TEXT}),
    "ModelCard": _object(
        {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT}
    ),
}
"""Schemas that others refer to, beside those of the bodies."""

ANSWERS: dict[str, dict[str, Json]] = {
    "/health": {
        "application/json": _object(
            {"status": {"const": "ready"}, "running": _COUNT, "waiting": _COUNT}
        )
    },
    "/metrics": {"text/plain": _TEXT},
    "/v1/models": {
        "application/json": _object({"object": {"const": "list"}, "data": _list(_ref("ModelCard"))})
    },
    "/v1/models/{name}": {"application/json": _ref("ModelCard")},
    "/trimtab/status": {
        "application/json": _object(
            {"model": _TEXT, "policy": _TEXT, "host": _ANY, "load": _ANY, "recent": _list(_ANY)}
        )
    },
    "/generate": {
        "application/json": _object(
            {
                "id": _TEXT,
                "text": _TEXT,
                "finish_reason": _FINISH,
                "usage": _ref("Usage"),
                "trimtab": _ref("Decision"),
            }
        ),
        "text/event-stream": _EVENTS,
    },
    "/v1/completions": {
        "application/json": _object(
            {
                **_HEAD,
                "object": {"const": "text_completion"},
                "choices": _list(_object({**_COMMON, "text": _TEXT})),
                "usage": _ref("Usage"),
                "trimtab": _ref("Decision"),
            }
        ),
        "text/event-stream": _EVENTS,
    },
    "/v1/chat/completions": {
        "application/json": _object(
            {
                **_HEAD,
                "object": {"const": "chat.completion"},
                "choices": _list(
                    _object(
                        {
                            **_COMMON,
                            "message": _object(
                                {"role": {"const": "assistant"}, "content": _or_null(_TEXT)}
                            ),
                        }
                    )
                ),
                "usage": _ref("Usage"),
                "trimtab": _ref("Decision"),
            }
        ),
        "text/event-stream": _EVENTS,
    },
}
