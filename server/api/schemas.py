"""The request bodies. Unknown fields are accepted, since clients send many; but not in `trimtab`.

Every list, mapping and text has a bound, and a list's check stops at the first invalid entry. No
value is taken for one of another type, but 5.0 is 5. `server.api.openapi` describes the bodies to
clients; bounds that depend on the model are marked by name for it.
"""

from typing import Annotated

from pydantic import (
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
)

from server.api.constrained.fields import ConstrainedBody
from server.api.openapi.limits import Limit, limited_by
from server.api.strict_body import RequestBody

MAX_IDS = 1024  # in stop_token_ids and logit_bias
MAX_TEXT = 2**24  # characters; the context of the model and the size of bodies are other bounds
MAX_NAME = 512


Text = Annotated[str, Field(max_length=MAX_TEXT)]
Name = Annotated[str, Field(max_length=MAX_NAME)]
Temperature = Annotated[float, Field(ge=0, le=100)]
Count = Annotated[int, Field(le=2**31)]
TokenId = Annotated[
    int, Field(ge=0, lt=2**31, strict=True, json_schema_extra=limited_by(Limit.TOKEN))
]
NamedId = Annotated[int, Field(ge=0, lt=2**31, strict=False)]  # keys of JSON objects are strings
TokenIds = Annotated[
    list[TokenId],
    Field(max_length=2**20, fail_fast=True, json_schema_extra=limited_by(Limit.PROMPT)),
]
StopString = Annotated[str, Field(min_length=1, max_length=512)]
Stop = Annotated[
    Annotated[StopString, Tag("text")]
    | Annotated[list[StopString], Field(max_length=16, fail_fast=True), Tag("list")],
    Discriminator(lambda value: "text" if isinstance(value, str) else "list"),
]


_PROMPTS = Field(max_length=2**16, fail_fast=True, json_schema_extra=limited_by(Limit.PROMPTS))


def _prompt_type(value: object) -> str | None:
    """Return the type of a prompt by its first entry, so that no other type is tried."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else ""
    return "texts" if isinstance(first, str) else "ids" if isinstance(first, list) else "tokens"


AnyPrompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], _PROMPTS, Tag("texts")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[list[TokenIds], _PROMPTS, Tag("ids")],
    Discriminator(
        _prompt_type,
        custom_error_type="prompt_type",
        custom_error_message="a prompt is a text, a list of texts, or a list or lists of token ids",
    ),
]


WrittenTokens = Annotated[Count, Field(json_schema_extra=limited_by(Limit.CONTEXT))]


class TrimtabHints(RequestBody):
    """What a request may ask of the controller: pins, objectives, a bound on the loss.

    `variant` and `kv_budget` (cached tokens) pin the action. `read` names the reader of the prompt,
    or `full`. `max_loss` is in nats per token against the base. `deadline_ms` is an objective; the
    answer is cut at `timeout_ms`. `narrow` allows a narrower variant within the answer. Names of
    control tokens in a prompt or message act as control tokens, as in other servers; with
    `plain_text` they are text, so that what users write cannot end their turn or begin another one.
    """

    model_config = ConfigDict(extra="forbid")

    variant: Annotated[Name, Field(json_schema_extra=limited_by(Limit.VARIANT))] | None = None
    kv_budget: Count | None = Field(default=None, ge=32)
    read: Annotated[Name, Field(json_schema_extra=limited_by(Limit.READER))] | None = None
    ttft_ms: float | None = Field(default=None, gt=0)
    tpot_ms: float | None = Field(default=None, gt=0)
    max_loss: float | None = Field(default=None, ge=0)
    deadline_ms: float | None = Field(default=None, gt=0)
    timeout_ms: float | None = Field(default=None, gt=0)
    narrow: bool = False
    plain_text: bool = False


class SamplingBody(ConstrainedBody):
    """The parameters that all routes for generation share."""

    model_config = ConfigDict(extra="allow")

    temperature: Temperature | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: Count | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: (
        Annotated[
            dict[NamedId, Annotated[float, Field(ge=-100, le=100)]],
            Field(json_schema_extra=limited_by(Limit.TOKEN_NAMES)),
        ]
        | None
    ) = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stop | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_IDS, fail_fast=True)] | None = (
        None
    )
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: Count = Field(default=0, ge=0)
    max_tokens: Annotated[WrittenTokens, Field(ge=1)] | None = None
    n: Annotated[Count, Field(ge=1, json_schema_extra=limited_by(Limit.ANSWERS))] | None = None
    stream: bool | None = None
    # Whether the tokenizer puts its own tokens around the prompt; by default not around a chat.
    add_special_tokens: bool | None = None
    # How many of the prompt's last tokens are kept; -1: as many as the context has room for.
    truncate_prompt_tokens: (
        Annotated[Count, Field(ge=-1, json_schema_extra={"not": {"const": 0}})] | None
    ) = None
    skip_special_tokens: bool | None = None  # if not, the text of an answer has them
    trimtab: Annotated[TrimtabHints, Field(json_schema_extra=limited_by(Limit.OR_NULL))] = (
        TrimtabHints()
    )

    @field_validator("trimtab", mode="before")
    @classmethod
    def _null_as_empty(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > len(TrimtabHints.model_fields):
            raise ValueError("some of these fields are not known")
        return {} if value is None else value

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _refuse_nothing(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("must be 1 or more, or -1")
        return value

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _check_bias_count(cls, value: object) -> object:
        if isinstance(value, dict) and len(value) > MAX_IDS:
            raise ValueError(f"at most {MAX_IDS} tokens can have a bias")
        return value


class GenerateBody(SamplingBody):
    """The body of `POST /generate`."""

    model: Name | None = None
    prompt: Text
    n: Annotated[int, Field(json_schema_extra={"const": 1})] | None = None

    @field_validator("n")
    @classmethod
    def _check_count(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError("/generate gives one answer; use /v1/completions for more")
        return value


class StreamOptions(RequestBody):
    """`stream_options` of the OpenAI API; `continuous_usage_stats` as vLLM has it."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class DetailedBody(SamplingBody):
    """The parameters of routes whose answers may show their tokens, as vLLM has them."""

    stream_options: StreamOptions | None = None
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None


class CompletionBody(DetailedBody):
    """The body of `POST /v1/completions`."""

    model: Name | None = None
    prompt: AnyPrompt
    # 0 is allowed with `echo`: the prompt is scored and nothing is written.
    max_tokens: Annotated[WrittenTokens, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: Count | None = Field(default=None, ge=1)
    suffix: Annotated[Text, Field(json_schema_extra={"enum": [""]})] | None = None
