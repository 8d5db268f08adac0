"""The beginning of a chat, whatever its wire format: it is checked, rendered and started."""

from dataclasses import dataclass

from starlette.requests import Request

from server.api.caller import caller_of
from server.api.chat.body import ChatBody
from server.api.chat.parser import AnswerParser, PlainAnswer
from server.api.chat.run import ChatRun
from server.api.constrained.constraint import OutputConstraint
from server.api.errors import misfit
from server.api.prompt.processor import (
    Chat,
    EncodingOptions,
    PromptProcessor,
    TokenizedPrompt,
)
from server.api.request_builder import ParsedRequest
from server.api.service import (
    Service,
    encoding_options,
    estimated_tokens,
    variant_in_model_name,
)
from server.api.tools.call_schema import answer_constraint
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
    plan = _plan(parts, body)
    service, dialect, caller = parts.service, parts.dialect, caller_of(request, id_prefix)
    service.keep_place(caller, [sum(estimated_tokens(m.text) for m in body.messages)])
    prompt = await parts.prompts.chat(plan.chat, _encoding(body))
    parsed = ParsedRequest(
        prompts=[prompt],
        body=body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        variant=variant_in_model_name(service, body.model),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        shown=dialect.shown(plan.use),
        constraint=await service.builder.constraints.compile(plan.constraint),
    )
    active = service.start(parsed, caller)
    separates = body.separate_reasoning is not False and plan.constraint is None

    def parser(index: int) -> AnswerParser:
        splitter = dialect.splitter(plan.use, prompt.end, separates)
        if splitter is None:
            return PlainAnswer(index)
        shown = body.include_reasoning is not False
        return ParsedAnswer(index, splitter, plan.chat.beginning, dialect.form.short_ids, shown)

    parsers = [parser(index) for index in range(parsed.choices)]
    return ChatRun(service, active, request, body, parsers, prompt.tokens)


def _check(body: ChatBody) -> None:
    """Raise `ApiError` 400 for fields that do not fit together or are not supported."""
    refuse_unsupported(body.model_extra or {}, body.n or 1)
    check_details(body)
    if body.top_logprobs and not body.logprobs:
        raise misfit("top_logprobs needs logprobs: true", "top_logprobs")
    if not body.messages:
        raise misfit("messages is empty", "messages")


async def chat_prompt(parts: ChatParts, body: ChatBody) -> TokenizedPrompt:
    """Return the prompt of a chat that is not answered. Raise `ApiError`."""
    return await parts.prompts.chat(_plan(parts, body).chat, _encoding(body))


async def rendered_chat(parts: ChatParts, body: ChatBody) -> str:
    """Return the text of a chat that is not answered. Raise `ApiError`."""
    return await parts.prompts.rendered(_plan(parts, body).chat, _encoding(body))


@dataclass(frozen=True, slots=True)
class _PlannedChat:
    """What the template renders, the tools that may be called, and the form of the answer."""

    chat: Chat
    use: ToolUse | None
    constraint: OutputConstraint | None


def _plan(parts: ChatParts, body: ChatBody) -> _PlannedChat:
    """Check a chat; return what is to be done. Raise `ApiError`."""
    _check(body)
    dialect = parts.dialect
    use = tool_use(body.tools, body.tool_choice, body.parallel_tool_calls)
    constraint = answer_constraint(use, dialect.form, body.constraint())
    chat = dialect.prepare(_chat(parts, body), use, constraint is not None)
    return _PlannedChat(chat, use, constraint)


def _encoding(body: ChatBody) -> EncodingOptions:
    """Return how the text of a chat is encoded: its template writes the special tokens."""
    if body.max_completion_tokens is not None:  # which has the last word on the room that is left
        body = body.model_copy(update={"max_tokens": body.max_completion_tokens})
    return encoding_options(body, special_tokens=False)


def _chat(parts: ChatParts, body: ChatBody) -> Chat:
    """Return the chat as it came. Raise `ApiError`."""
    continue_final = body.continue_final_message
    add_generation_prompt = body.add_generation_prompt
    if continue_final and "add_generation_prompt" not in body.model_fields_set:
        add_generation_prompt = False
    if continue_final and add_generation_prompt:
        raise misfit(
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
    efforts = parts.dialect.reasoning_variables(body.reasoning_effort)
    variables = {**efforts, **(body.chat_template_kwargs or {})}
    return Chat(
        messages=[message.for_template() for message in body.messages],
        variables=variables,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final,
    )
