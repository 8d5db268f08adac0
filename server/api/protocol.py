"""The request bodies. Unknown fields are accepted, as clients send many; ours are strict."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Temperature = Annotated[float, Field(ge=0, le=100)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Stop = str | Annotated[list[str], Field(max_length=16)]


class TrimtabHints(BaseModel):
    """What a request may ask of the controller: pins, objectives, a bound on the loss.

    `max_loss` is in nats per token against the base; `narrow` allows a narrower variant midway.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    variant: str | None = None
    kv_budget: int | None = Field(default=None, ge=32, le=2**31)
    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    max_loss: float | None = Field(default=None, ge=0)
    deadline_ms: float | None = Field(default=None, gt=0)
    narrow: bool = False


class SamplingBody(BaseModel):
    """The parameters that all three ways to ask for text share."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    temperature: Temperature | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int = Field(default=0, ge=0)
    max_tokens: int | None = Field(default=None, ge=1)
    n: int | None = Field(default=None, ge=1)
    stream: bool | None = None
    trimtab: TrimtabHints = TrimtabHints()

    @field_validator("trimtab", mode="before")
    @classmethod
    def _null_is_none(cls, value: object) -> object:
        return {} if value is None else value

    @field_validator("stop")
    @classmethod
    def _no_empty_stop(cls, value: Stop | None) -> Stop | None:
        if value == "" or (isinstance(value, list) and "" in value):
            raise ValueError("a stop string cannot be empty")
        return value


class GenerateBody(SamplingBody):
    """`POST /generate`."""

    prompt: str


class StreamOptions(BaseModel):
    """`stream_options` of the OpenAI API; `continuous_usage_stats` as vLLM has it."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class CompletionBody(SamplingBody):
    """`POST /v1/completions`."""

    model: str | None = None
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    # 0 is allowed with echo: score the prompt and write nothing.
    max_tokens: int | None = Field(default=None, ge=0)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    suffix: str | None = None
    stream_options: StreamOptions | None = None


class TextPart(BaseModel):
    """A part of a message. Only text is served."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One message of a conversation; other fields go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[TextPart] | None = None

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it, its content one string."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        return {**self.model_dump(exclude={"content"}), "content": content or ""}


class ChatBody(SamplingBody):
    """`POST /v1/chat/completions`."""

    model: str | None = None
    messages: list[ChatMessage]
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    response_format: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None
