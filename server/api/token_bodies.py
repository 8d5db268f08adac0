"""The bodies of the routes that only tokenise, as vLLM and llama.cpp have them."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from server.api.chat.body import MAX_MESSAGES
from server.api.schemas import Name, Text, TokenId
from server.api.strict_body import RequestBody

MAX_TOKENS = 2**16  # in one call


class TokenizeBody(RequestBody):
    """The body of `POST /tokenize`: a `prompt` or `messages` (vLLM), or `content` (llama.cpp).

    Special tokens are put around a prompt by default, and not around the others. Undeclared fields
    of a chat, such as `tools`, are those of `/v1/chat/completions`.
    """

    model_config = ConfigDict(extra="allow")

    model: Name | None = None
    prompt: Text | None = None
    content: Text | None = None
    messages: Annotated[list[Any], Field(max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool | None = None
    add_special: bool = False
    parse_special: bool = True
    return_token_strs: bool = False
    with_pieces: bool = False


class TemplateBody(RequestBody):
    """The body of `POST /apply-template`; undeclared fields are those of a chat."""

    model_config = ConfigDict(extra="allow")

    messages: Annotated[list[Any], Field(max_length=MAX_MESSAGES)]


class DetokenizeBody(RequestBody):
    """The body of `POST /detokenize`."""

    model: Name | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]
