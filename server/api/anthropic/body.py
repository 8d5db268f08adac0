"""The bodies of Anthropic's Messages API. Unknown fields are accepted, since clients send many."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from server.api.chat.body import MAX_MESSAGES
from server.api.schemas import Count, Name, StopString, Temperature, Text, TrimtabHints
from server.api.strict_body import RequestBody
from server.api.tools.bodies import MAX_TOOLS


class TextBlock(RequestBody):
    """Text in a message, a system prompt or the result of a tool."""

    type: Literal["text"]
    text: Text


class ThinkingBlock(RequestBody):
    """What the assistant thought before it spoke."""

    type: Literal["thinking"]
    thinking: Text


class RedactedThinkingBlock(RequestBody):
    """Thoughts of another server that cannot be read; they are left out."""

    type: Literal["redacted_thinking"]


class ToolUseBlock(RequestBody):
    """A call of a tool by the assistant."""

    type: Literal["tool_use"]
    id: Name
    name: Name
    input: dict[str, Any]


TextBlocks = Annotated[list[TextBlock], Field(max_length=MAX_MESSAGES, fail_fast=True)]
TextContent = Annotated[
    Annotated[Text, Tag("text")] | Annotated[TextBlocks, Tag("blocks")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "blocks"),
]


class ToolResultBlock(RequestBody):
    """What a tool returned."""

    type: Literal["tool_result"]
    tool_use_id: Name
    content: TextContent | None = None
    is_error: bool | None = None


ContentBlock = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock | ToolResultBlock,
    Field(discriminator="type"),
]
ContentBlocks = Annotated[list[ContentBlock], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class TurnBody(RequestBody):
    """A message of the user or of the assistant."""

    role: Literal["user", "assistant"]
    content: Annotated[
        Annotated[Text, Tag("text")] | Annotated[ContentBlocks, Tag("blocks")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "blocks"),
    ]


class ClientTool(RequestBody):
    """A tool that the client runs. Tools that a server would run have another `type`."""

    type: Literal["custom"] | None = None
    name: Name
    description: Text | None = None
    input_schema: dict[str, Any]


class ToolChoiceBody(RequestBody):
    """Whether and which tools are called."""

    type: Literal["auto", "any", "tool", "none"]
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class ThinkingOption(RequestBody):
    """Whether the model thinks. Nothing keeps to `budget_tokens` but `max_tokens`."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Annotated[Count, Field(ge=0)] | None = None


class JsonSchemaFormat(RequestBody):
    """The schema that an answer keeps to."""

    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(RequestBody):
    """The form of the answer, and how much the model should think."""

    format: JsonSchemaFormat | None = None
    effort: Name | None = None


class CountTokensBody(RequestBody):
    """The body of `POST /v1/messages/count_tokens`: what a prompt is made of."""

    model_config = ConfigDict(extra="allow")

    model: Name | None = None
    messages: Annotated[
        list[TurnBody],
        Field(max_length=MAX_MESSAGES, fail_fast=True, json_schema_extra={"minItems": 1}),
    ]
    system: TextContent | None = None
    tools: Annotated[list[ClientTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoiceBody | None = None
    thinking: ThinkingOption | None = None
    output_config: OutputConfig | None = None


class MessagesBody(CountTokensBody):
    """The body of `POST /v1/messages`; `trimtab` is an addition."""

    max_tokens: Count = Field(ge=1)
    stop_sequences: Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = None
    stream: bool | None = None
    temperature: Temperature | None = None
    top_k: Annotated[Count, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    trimtab: TrimtabHints | None = None
