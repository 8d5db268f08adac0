"""The fields of a request's body that have to do with tools."""

import json
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator

from server.api.schemas import Text
from server.api.strict_body import RequestBody

MAX_TOOLS = 128
MAX_CALLS = 128  # in one message
_MAX_SCHEMA = 2**16  # characters of JSON
_NAME = r"^[A-Za-z0-9_.-]{1,128}$"

ToolName = Annotated[str, Field(pattern=_NAME)]
CallId = Annotated[str, Field(max_length=256)]


class FunctionBody(RequestBody):
    """A function that the model may call: its `parameters` are a JSON schema of an object."""

    model_config = ConfigDict(extra="ignore")

    name: ToolName
    description: Annotated[str, Field(max_length=2**14)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    @field_validator("parameters")
    @classmethod
    def _check_parameters(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is None:
            return None
        if value.get("type", "object") != "object":
            raise ValueError('the type of a function\'s parameters must be "object"')
        if len(json.dumps(value)) > _MAX_SCHEMA:
            raise ValueError(f"the schema must be at most {_MAX_SCHEMA} characters of JSON")
        return value


class ToolBody(RequestBody):
    """A tool, which must be a function."""

    type: Literal["function"]
    function: FunctionBody


class ChosenFunction(RequestBody):
    """The name of a function."""

    name: ToolName


class ChosenTool(RequestBody):
    """The one tool that is to be called."""

    type: Literal["function"]
    function: ChosenFunction


class AllowedToolList(RequestBody):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


class AllowedTools(RequestBody):
    """The tools that may be called in this answer."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedToolList


def _choice_type(value: object) -> str:
    if isinstance(value, str):
        return "mode"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "allowed" if kind == "allowed_tools" else "named"


Tools = Annotated[list[ToolBody], Field(max_length=MAX_TOOLS, fail_fast=True)]
ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[ChosenTool, Tag("named")]
    | Annotated[AllowedTools, Tag("allowed")],
    Discriminator(_choice_type),
]


class CalledFunction(RequestBody):
    """What was called: `arguments` is JSON text."""

    name: Annotated[str, Field(max_length=256)]
    arguments: Text = ""


class CallBody(RequestBody):
    """A call in a message of the assistant."""

    model_config = ConfigDict(extra="ignore")

    id: CallId | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


Calls = Annotated[list[CallBody], Field(max_length=MAX_CALLS, fail_fast=True)]
