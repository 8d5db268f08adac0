"""The bodies of the routes that only tokenise, as vLLM and llama.cpp have them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from server.api.schemas import TokenId

MAX_TOKENS = 2**16  # in one call


class TokenizeBody(BaseModel):
    """The body of `POST /tokenize`: a `prompt` or `messages` (vLLM), or `content` (llama.cpp).

    Special tokens are put around a prompt by default, and not around the others. Undeclared fields
    of a chat, such as `tools`, are those of `/v1/chat/completions`.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    prompt: str | None = None
    content: str | None = None
    messages: list[Any] | None = None
    add_special_tokens: bool | None = None
    add_special: bool = False
    parse_special: bool = True
    return_token_strs: bool = False
    with_pieces: bool = False


class DetokenizeBody(BaseModel):
    """The body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]
