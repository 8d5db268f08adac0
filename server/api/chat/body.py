"""The body of a chat. Adapters of other wire formats translate theirs to it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from server.api.schemas import Count, SamplingBody, StreamOptions

MAX_MESSAGES = 4096  # and parts of a message


class TextPart(BaseModel):
    """A part of a message, which must be text."""

    type: Literal["text"]
    text: str


Content = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES, fail_fast=True), Tag("parts")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
]


class ChatMessage(BaseModel):
    """A message of a chat; unknown fields go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Content | None = None

    def for_template(self) -> dict[str, Any]:
        """Return the message as chat templates expect it, with its content as one string."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        extra = {
            name: value for name, value in (self.model_extra or {}).items() if value is not None
        }
        return {"role": self.role, **extra, "content": content or ""}


class ChatBody(SamplingBody):
    """The body of `POST /v1/chat/completions`."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Count | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | None = None  # for templates that read it
    stream_options: StreamOptions | None = None
