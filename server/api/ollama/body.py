"""The bodies of Ollama's API. Unknown fields are accepted, since clients send many."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag

from server.api.chat.body import MAX_MESSAGES
from server.api.schemas import Name, Text, TrimtabHints
from server.api.strict_body import RequestBody
from server.api.tools.bodies import MAX_TOOLS

KeepAlive = Annotated[str, Field(max_length=64)] | float
Think = bool | Annotated[str, Field(max_length=64)]
AnswerFormat = Annotated[
    Annotated[Literal["", "json"], Tag("name")] | Annotated[dict[str, Any], Tag("schema")],
    Discriminator(lambda value: "schema" if isinstance(value, dict) else "name"),
]
"""`json`, or a JSON schema."""


class _OllamaBody(RequestBody):
    """What all bodies have; `keep_alive` has no effect, since the model stays loaded."""

    model_config = ConfigDict(extra="allow")

    model: Name
    options: Annotated[dict[str, Any], Field(max_length=64)] | None = None
    keep_alive: KeepAlive | None = None


class AnswerBody(_OllamaBody):
    """What bodies have that ask for an answer; `trimtab` is an addition."""

    stream: bool | None = None
    format: AnswerFormat | None = None
    think: Think | None = None
    trimtab: TrimtabHints | None = None


class CalledTool(RequestBody):
    """A tool and its arguments as an object."""

    name: Name
    arguments: dict[str, Any]


class OllamaToolCall(RequestBody):
    """A call in a message of the assistant."""

    id: Name | None = None
    function: CalledTool


class OllamaMessage(RequestBody):
    """A message of a chat."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | None = None
    thinking: Text | None = None
    images: Annotated[list[str], Field(max_length=0)] | None = None
    tool_calls: Annotated[list[OllamaToolCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_name: Name | None = None
    tool_call_id: Name | None = None


class OllamaChatBody(AnswerBody):
    """The body of `POST /api/chat`."""

    messages: Annotated[list[OllamaMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)] = (
        Field(default=[])
    )
    tools: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None


class OllamaGenerateBody(AnswerBody):
    """The body of `POST /api/generate`."""

    prompt: Text | None = None
    system: Text | None = None
    raw: bool | None = None
    suffix: Text | None = None
    template: Text | None = None
    context: Annotated[list[Any], Field(max_length=0)] | None = None
    images: Annotated[list[str], Field(max_length=0)] | None = None


class OllamaEmbedBody(_OllamaBody):
    """The body of `POST /api/embed`."""

    input: Annotated[
        Annotated[Text, Tag("text")]
        | Annotated[list[Text], Field(max_length=2**16, fail_fast=True), Tag("texts")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "texts"),
    ]
    truncate: bool | None = None
    dimensions: int | None = None


class OllamaEmbeddingsBody(_OllamaBody):
    """The body of `POST /api/embeddings`, the older form for one prompt."""

    prompt: Text


class OllamaShowBody(RequestBody):
    """The body of `POST /api/show`; older clients call the model `name`."""

    model: Name | None = None
    name: Name | None = None
