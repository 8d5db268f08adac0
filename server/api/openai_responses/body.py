"""The body of `POST /v1/responses`. Unknown fields are accepted, since clients send many."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from server.api.chat.body import MAX_MESSAGES
from server.api.schemas import Count, Name, Temperature, Text, TrimtabHints
from server.api.strict_body import RequestBody
from server.api.tools.bodies import MAX_TOOLS

ShortText = Annotated[str, Field(max_length=512)]


class InputTextPart(RequestBody):
    """Text in a message or in what a tool returned."""

    type: Literal["input_text", "output_text", "text"]
    text: Text


class RefusalPart(RequestBody):
    """What the assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: Text


InputPart = Annotated[InputTextPart | RefusalPart, Field(discriminator="type")]
InputParts = Annotated[list[InputPart], Field(max_length=MAX_MESSAGES, fail_fast=True)]
InputContent = Annotated[
    Annotated[Text, Tag("text")] | Annotated[InputParts, Tag("parts")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
]


class MessageItem(RequestBody):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: InputContent


class FunctionCallItem(RequestBody):
    """A call of a tool by the assistant; `arguments` is JSON text."""

    type: Literal["function_call"]
    call_id: Name
    name: Name
    arguments: Text


class FunctionCallOutputItem(RequestBody):
    """What a tool returned."""

    type: Literal["function_call_output"]
    call_id: Name
    output: InputContent


class ReasoningPart(RequestBody):
    """A part of what the assistant thought."""

    type: Literal["reasoning_text", "summary_text"]
    text: Text


class ReasoningItem(RequestBody):
    """What the assistant thought before it spoke; a summary counts if there is nothing else."""

    type: Literal["reasoning"]
    content: Annotated[list[ReasoningPart], Field(max_length=MAX_MESSAGES)] | None = None
    summary: Annotated[list[ReasoningPart], Field(max_length=MAX_MESSAGES)] | None = None


def _item_type(value: object) -> str | None:
    """Return the type of an item; messages may come without one."""
    if isinstance(value, dict):
        return value.get("type", "message")
    return getattr(value, "type", None)


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _item_type,
        custom_error_type="item_type",
        custom_error_message="an item is a message, a function_call, a function_call_output or a "
        "reasoning; nothing is stored that an item_reference could name",
    ),
]
ResponseInput = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[InputItem], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("items")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "items"),
]


class FunctionTool(RequestBody):
    """A function that the client runs."""

    type: Literal["function"]
    name: Name
    description: Text | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedFunction(RequestBody):
    """The one function that is to be called."""

    type: Literal["function"]
    name: Name


FunctionChoice = Annotated[
    Annotated[Literal["auto", "none", "required"], Tag("mode")]
    | Annotated[NamedFunction, Tag("named")],
    Discriminator(lambda value: "mode" if isinstance(value, str) else "named"),
]


class PlainText(RequestBody):
    """Text of any form."""

    type: Literal["text"]


class JsonObjectText(RequestBody):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchemaText(RequestBody):
    """JSON that keeps to a schema."""

    type: Literal["json_schema"]
    name: ShortText
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: Text | None = None
    strict: bool | None = None


class TextOption(RequestBody):
    """The form of the answer's text."""

    format: (
        Annotated[PlainText | JsonObjectText | JsonSchemaText, Field(discriminator="type")] | None
    ) = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOption(RequestBody):
    """How much the model should think, for templates that read it."""

    effort: ShortText | None = None
    summary: ShortText | None = None


class ResponseBody(RequestBody):
    """The body of `POST /v1/responses`; `trimtab` is an addition."""

    model_config = ConfigDict(extra="allow")

    model: Name | None = None
    input: ResponseInput
    instructions: Text | None = None
    max_output_tokens: Annotated[Count, Field(ge=1)] | None = None
    temperature: Temperature | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool | None = None
    text: TextOption | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningOption | None = None
    include: Annotated[list[ShortText], Field(max_length=32, fail_fast=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: Name | None = None
    metadata: dict[ShortText, ShortText] | None = Field(default=None, max_length=16)
    trimtab: TrimtabHints | None = None
