"""What answers and errors of other APIs look like, as JSON schemas, by path and content type."""

from typing import Any

from server.api.error_envelope import error_body

Json = dict[str, Any]

_TEXT: Json = {"type": "string"}
_BY_THE_SERVER = {408, 431}
"""Errors before any route is known, which have the envelope everywhere."""


def _with(*names: str) -> Json:
    """Return the schema of an object that has fields of these names."""
    return {"type": "object", "required": list(names)}


_OLLAMA = ("model", "created_at", "done")
_TOKENIZER = ("tokenizer_class", "eos_token", "bos_token", "pad_token", "chat_template")

ADAPTER_SCHEMAS: Json = {
    "AnthropicError": {
        "type": "object",
        "properties": {"type": {"const": "error"}, "error": _with("type", "message")},
        "required": ["type", "error"],
    },
    "OllamaError": {"type": "object", "properties": {"error": _TEXT}, "required": ["error"]},
}
"""Schemas that others refer to."""

ADAPTER_ANSWERS: dict[str, dict[str, Json]] = {
    "/v1/embeddings": {"application/json": _with("object", "data", "model", "usage")},
    "/v1/responses": {
        "application/json": _with("id", "object", "status", "output", "usage"),
        "text/event-stream": {"description": "Server-sent events."},
    },
    "/v1/messages": {
        "application/json": _with("id", "type", "role", "content", "stop_reason", "usage"),
        "text/event-stream": {"description": "Server-sent events."},
    },
    "/v1/messages/count_tokens": {"application/json": _with("input_tokens")},
    "/api/chat": {
        "application/json": _with(*_OLLAMA, "message"),
        "application/x-ndjson": _TEXT,
    },
    "/api/generate": {
        "application/json": _with(*_OLLAMA, "response"),
        "application/x-ndjson": _TEXT,
    },
    "/api/embed": {"application/json": _with("model", "embeddings")},
    "/api/embeddings": {"application/json": _with("embedding")},
    "/api/tags": {"application/json": _with("models")},
    "/api/ps": {"application/json": _with("models")},
    "/api/show": {"application/json": _with("details", "model_info", "capabilities")},
    "/api/version": {"application/json": _with("version")},
    "/version": {"application/json": _with("version")},
    "/load": {"application/json": _with("server_load")},
    "/props": {"application/json": _with("default_generation_settings", "total_slots")},
    "/tokenize": {"application/json": _with("count", "max_model_len", "tokens")},
    "/detokenize": {"application/json": _with("prompt", "content")},
    "/tokenizer_info": {"application/json": _with(*_TOKENIZER)},
    "/apply-template": {"application/json": _with("prompt")},
}


def error_schema(path: str, status: int) -> Json:
    """Return the schema of an error of a route."""
    body = error_body(path, status, "")
    name = "Error"
    if status not in _BY_THE_SERVER:
        name = "AnthropicError" if "type" in body else name
        name = "OllamaError" if isinstance(body["error"], str) else name
    return {"$ref": f"#/components/schemas/{name}"}
