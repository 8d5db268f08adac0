"""The fields of a request that constrain its answers: OpenAI's and vLLM's."""

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from server.api.constrained.constraint import OutputConstraint
from server.api.errors import misfit
from server.api.strict_body import RequestBody

MAX_CHOICES = 1024
MAX_SOURCE_CHARACTERS = 2**18  # of a schema, an expression, a grammar

SourceText = Annotated[str, Field(max_length=MAX_SOURCE_CHARACTERS)]
Schema = dict[str, Any]
SchemaOrText = Schema | SourceText
Choices = Annotated[list[SourceText], Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True)]


class NamedSchema(RequestBody):
    """`json_schema` of OpenAI's `response_format`. The schema holds whether `strict` or not."""

    name: str | None = Field(default=None, max_length=256)
    description: SourceText | None = None
    json_schema: Schema | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestBody):
    """OpenAI's `response_format`."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(RequestBody):
    """vLLM's `structured_outputs`: exactly one form, and options for JSON."""

    model_config = ConfigDict(extra="forbid")

    json_schema: SchemaOrText | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: SourceText | None = None
    choice: Choices | None = None
    grammar: SourceText | None = None
    disable_any_whitespace: bool = False


class ConstrainedBody(RequestBody):
    """The fields by which a body constrains its answers; at most one form may be asked for."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: SchemaOrText | None = None
    guided_regex: SourceText | None = None
    guided_choice: Choices | None = None
    guided_grammar: SourceText | None = None

    def constraint(self) -> OutputConstraint | None:
        """Return the form that the answers must have, None for any. Raise `ApiError` 400."""
        found = [*_of_response_format(self.response_format)]
        if self.structured_outputs is not None:
            found += _of_structured_outputs(self.structured_outputs)
        guided: dict[str, Any] = {
            "json": self.guided_json,
            "regex": self.guided_regex,
            "choice": self.guided_choice,
            "grammar": self.guided_grammar,
        }
        found += [
            _of(name, value, f"guided_{name}") for name, value in guided.items() if _given(value)
        ]
        if len(found) > 1:
            names = ", ".join(one.param for one in found)
            raise misfit(f"only one form of the answer may be asked for: {names}", names)
        return found[0] if found else None


def json_schema(schema: Schema | str, param: str, blanks: bool = True) -> OutputConstraint:
    """Return the constraint to JSON of a schema. Raise `ApiError` 400 if it is no schema.

    A schema of true or false is of no use here.
    """
    if isinstance(schema, str):
        try:
            parsed = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise misfit(f"{param} is not valid JSON: {error}", param) from error
        if not isinstance(parsed, dict):
            raise misfit(f"{param} must be a JSON Schema, which is an object", param)
        schema = parsed
    text = json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_SOURCE_CHARACTERS:
        raise misfit(f"{param} has more than {MAX_SOURCE_CHARACTERS} characters of JSON", param)
    return OutputConstraint("json_schema", text, blanks, param)


def _given(value: object) -> bool:
    """Return whether a field asks for something; many clients send empty texts."""
    return value not in (None, "")


def _of_response_format(wanted: ResponseFormat | None) -> list[OutputConstraint]:
    if wanted is None or wanted.type == "text":
        return []
    if wanted.type == "json_object":
        return [OutputConstraint("json_object")]
    if wanted.json_schema is None or wanted.json_schema.json_schema is None:
        raise misfit(
            "response_format of type json_schema needs json_schema.schema",
            "response_format.json_schema",
        )
    return [json_schema(wanted.json_schema.json_schema, "response_format")]


def _of_structured_outputs(wanted: StructuredOutputs) -> list[OutputConstraint]:
    """Return the form, or several if a request is wrong. Raise `ApiError` 400."""
    blanks = not wanted.disable_any_whitespace
    values: dict[str, Any] = {
        "json": wanted.json_schema,
        "regex": wanted.regex,
        "choice": wanted.choice,
        "grammar": wanted.grammar,
    }
    found = [
        _of(name, value, f"structured_outputs.{name}", blanks)
        for name, value in values.items()
        if _given(value)
    ]
    if wanted.json_object:
        param = "structured_outputs.json_object"
        found.append(OutputConstraint("json_object", blanks=blanks, param=param))
    if not found:
        raise misfit(
            "structured_outputs needs one of json, json_object, regex, choice and grammar",
            "structured_outputs",
        )
    return found


def _of(name: str, value: Any, param: str, blanks: bool = True) -> OutputConstraint:  # noqa: ANN401
    """Return the constraint of a field of vLLM's. Raise `ApiError` 400."""
    if name == "json":
        return json_schema(value, param, blanks)
    if name == "choice":
        return OutputConstraint("choice", json.dumps(value), param=param)
    return OutputConstraint("regex" if name == "regex" else "grammar", str(value), param=param)
