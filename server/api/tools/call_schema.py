"""The JSON schema of what follows the beginning of an answer that must call a tool."""

import json
from typing import Any

from server.api.constrained.constraint import OutputConstraint
from server.api.constrained.fields import json_schema
from server.api.errors import ApiError
from server.api.tools.bodies import FunctionBody
from server.api.tools.tool_form import ToolForm
from server.api.tools.tool_use import ToolUse, parameters

MAX_PARALLEL = 8  # calls in one answer that must call tools
# Beside these, a schema's `properties` are not all that an object may have.
_OPEN = {"$ref", "allOf", "anyOf", "oneOf", "if", "patternProperties", "unevaluatedProperties"}


def answer_constraint(
    use: ToolUse | None, form: ToolForm, asked: OutputConstraint | None
) -> OutputConstraint | None:
    """Return the form of an answer: the one `asked` for, or that of calls which must be.

    Raise `ApiError` 400 if both are asked for.
    """
    if use is None or not use.required:
        return asked
    if asked is not None:
        message = f"{asked.param} and a tool that must be called exclude each other"
        raise ApiError(400, message, asked.param)
    return json_schema(call_schema(use, form), "tools")


def call_schema(use: ToolUse, form: ToolForm) -> dict[str, Any]:
    """Return the schema: of one tool's arguments, or of calls of several tools.

    Arguments that no schema names are left out.
    """
    if len(use.functions) == 1:
        return _closed(next(iter(use.functions.values())))
    definitions: dict[str, Any] = {}
    calls = []
    for number, (name, function) in enumerate(use.functions.items()):
        place = f"tool{number}"
        definitions[place] = _moved(_closed(function), f"#/$defs/{place}")
        arguments = {"$ref": f"#/$defs/{place}"}
        calls.append(_object({"name": {"const": name}, form.arguments: arguments}))
    schema: dict[str, Any] = {"anyOf": calls}
    if form.in_list:
        most = MAX_PARALLEL if use.parallel else 1
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": most}
    return {**schema, "$defs": definitions}


def _closed(function: FunctionBody) -> dict[str, Any]:
    """Return the schema of a function's arguments, in which objects have no unnamed members.

    A model that is free to add some may never come to an end. Objects that a schema combines of
    several parts stay open.
    """
    schema = parameters(function)
    if '"allOf"' in json.dumps(schema):
        return schema
    closed: dict[str, Any] = _close(schema)
    return closed


def _close(schema: Any) -> Any:  # noqa: ANN401
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), dict):
            closed[key] = {name: _close(part) for name, part in schema[key].items()}
    if "items" in schema:
        closed["items"] = _close(schema["items"])
    if isinstance(schema.get("properties"), dict) and not _OPEN & schema.keys():
        closed = {"additionalProperties": False, **closed}
    return closed


def _moved(value: Any, place: str) -> Any:  # noqa: ANN401
    """Return a schema that stands at `place` of another one, with its references to itself."""
    if isinstance(value, list):
        return [_moved(entry, place) for entry in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(entry, place) for key, entry in value.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
