"""The body of a chat. Adapters of other wire formats translate theirs to it."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from server.api.openapi.limits import Limit, limited_by
from server.api.schemas import DetailedBody, Name, Text, WrittenTokens
from server.api.strict_body import RequestBody
from server.api.tools.bodies import CallId, Calls, ToolChoice, Tools

MAX_MESSAGES = 4096  # and parts of a message


class TextPart(RequestBody):
    """A part of a message, which must be text."""

    type: Literal["text"]
    text: Text


Content = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("parts")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
]


class ChatMessage(RequestBody):
    """A message of a chat; unknown fields go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: Name
    content: Content | None = None
    tool_calls: Calls | None = None
    tool_call_id: CallId | None = None

    @property
    def text(self) -> str:
        """Return the content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it."""
        fields = {**(self.model_extra or {}), "tool_call_id": self.tool_call_id}
        if self.tool_calls:
            fields["tool_calls"] = [call.model_dump(exclude_none=True) for call in self.tool_calls]
        given = {name: value for name, value in fields.items() if value is not None}
        return {"role": self.role, **given, "content": self.text}


class ChatBody(DetailedBody):
    """The body of `POST /v1/chat/completions`."""

    model: Name | None = None
    messages: Annotated[
        list[ChatMessage],
        Field(max_length=MAX_MESSAGES, fail_fast=True, json_schema_extra={"minItems": 1}),
    ]
    max_completion_tokens: Annotated[WrittenTokens, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: (
        Annotated[dict[str, Any], Field(json_schema_extra=limited_by(Limit.VARIABLES))] | None
    ) = None
    reasoning_effort: Annotated[str, Field(max_length=32)] | None = None
    include_reasoning: bool | None = None  # if not, an answer's reasoning is left out
    separate_reasoning: bool | None = None  # if not, it stays in the content
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
