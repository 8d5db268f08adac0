"""The beginning of a chat, whatever its wire format: it is checked, rendered and started."""

from dataclasses import dataclass

from starlette.requests import Request

from server.api.caller import caller_of
from server.api.chat.body import ChatBody
from server.api.chat.parser import AnswerParser, PlainAnswer
from server.api.chat.run import ChatRun
from server.api.errors import ApiError
from server.api.prompt.processor import (
    Chat,
    EncodingOptions,
    PromptProcessor,
    TokenizedPrompt,
)
from server.api.request_builder import ParsedRequest
from server.api.service import Service, encoding_options, variant_in_model_name
from server.api.tools.dialect import ChatDialect
from server.api.tools.parsed_answer import ParsedAnswer
from server.api.tools.tool_use import ToolUse, tool_use
from server.api.unsupported_parameters import check_details, refuse_unsupported


@dataclass(frozen=True, slots=True)
class ChatParts:
    """What chats of all wire formats go through."""

    service: Service
    prompts: PromptProcessor
    dialect: ChatDialect


async def start_chat(
    body: ChatBody, request: Request, parts: ChatParts, id_prefix: str = "chatcmpl"
) -> ChatRun:
    """Check a chat, make its prompt and start its answers. Raise `ApiError`.

    The request's id begins with `id_prefix`, unless the client gave one.
    """
    _check(body)
    service, dialect = parts.service, parts.dialect
    use = _tool_use(body)
    if use is not None and use.required:
        raise ApiError(400, "tool_choice: calls cannot be required yet", "tool_choice")
    prompt = await _prompt(parts, body, use)
    parsed = ParsedRequest(
        prompts=[prompt],
        body=body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        variant=variant_in_model_name(service, body.model),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        shown=dialect.shown(use),
        constraint=await service.builder.constraints.compile(body.constraint()),
    )
    active = service.start(parsed, caller_of(request, id_prefix))
    parsers = [_parser(index, body, use, dialect, prompt.end) for index in range(parsed.choices)]
    return ChatRun(service, active, request, body, parsers, prompt.tokens)


def _parser(
    index: int, body: ChatBody, use: ToolUse | None, dialect: ChatDialect, prompt_end: str
) -> AnswerParser:
    """Return the parser of answer `index` to a prompt."""
    splitter = dialect.splitter(use, prompt_end, body.separate_reasoning is not False)
    if splitter is None:
        return PlainAnswer(index)
    beginning = "" if use is None else dialect.beginning(use)
    shows_reasoning = body.include_reasoning is not False
    return ParsedAnswer(index, splitter, beginning, dialect.form.short_ids, shows_reasoning)


def _check(body: ChatBody) -> None:
    """Raise `ApiError` 400 for fields that do not fit together or are not supported."""
    refuse_unsupported(body.model_extra or {}, body.n or 1)
    check_details(body)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if not body.messages:
        raise ApiError(400, "messages is empty", "messages")


async def chat_prompt(parts: ChatParts, body: ChatBody) -> TokenizedPrompt:
    """Return the prompt of a chat that is not answered. Raise `ApiError`."""
    _check(body)
    return await _prompt(parts, body, _tool_use(body))


async def rendered_chat(parts: ChatParts, body: ChatBody) -> str:
    """Return the text of a chat that is not answered. Raise `ApiError`."""
    _check(body)
    return await parts.prompts.rendered(_chat(parts, body, _tool_use(body)), _encoding(body))


async def _prompt(parts: ChatParts, body: ChatBody, use: ToolUse | None) -> TokenizedPrompt:
    """Render and tokenise the messages. Raise `ApiError`."""
    return await parts.prompts.chat(_chat(parts, body, use), _encoding(body))


def _tool_use(body: ChatBody) -> ToolUse | None:
    """Return the tools that an answer may call. Raise `ApiError`."""
    return tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)


def _encoding(body: ChatBody) -> EncodingOptions:
    """Return how the text of a chat is encoded: its template writes the special tokens."""
    if body.max_completion_tokens is not None:  # which has the last word on the room that is left
        body = body.model_copy(update={"max_tokens": body.max_completion_tokens})
    return encoding_options(body, special_tokens=False)


def _chat(parts: ChatParts, body: ChatBody, use: ToolUse | None) -> Chat:
    """Return what the template renders. Raise `ApiError`."""
    continue_final = body.continue_final_message
    add_generation_prompt = body.add_generation_prompt
    if continue_final and "add_generation_prompt" not in body.model_fields_set:
        add_generation_prompt = False
    if continue_final and add_generation_prompt:
        raise ApiError(
            400,
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
    efforts = parts.dialect.reasoning_variables(body.reasoning_effort)
    variables = {**efforts, **(body.chat_template_kwargs or {})}
    chat = Chat(
        messages=[message.for_template() for message in body.messages],
        variables=variables,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final,
    )
    return parts.dialect.prepare(chat, use)
