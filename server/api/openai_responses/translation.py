"""From the body of `POST /v1/responses` to that of a chat."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from server.api.chat.body import ChatBody
from server.api.chat.translated import chat_body, join
from server.api.errors import misfit, unsupported
from server.api.openai_responses.body import (
    FunctionCallItem,
    FunctionCallOutputItem,
    InputContent,
    InputItem,
    InputTextPart,
    JsonObjectText,
    JsonSchemaText,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    ResponseBody,
    TextOption,
)
from server.api.unsupported_parameters import refuse_unsupported

LOGPROBS = "message.output_text.logprobs"
"""What `include` holds where log-probabilities are asked for."""
_STATELESS = "this server stores no responses; send the whole conversation as input"


def to_chat(body: ResponseBody) -> ChatBody:
    """Return the same request as a chat. Raise `ApiError` 400."""
    _check(body)
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": list(_messages(body)),
        "max_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "seed": body.seed,
        "stream": body.stream,
        "trimtab": body.trimtab,
        "response_format": _response_format(body.text),
    }
    if asks_logprobs(body):
        fields |= {"logprobs": True, "top_logprobs": body.top_logprobs}
    if body.reasoning is not None:
        fields["reasoning_effort"] = body.reasoning.effort
    if body.tools:
        fields["tools"] = [
            {"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)}
            for tool in body.tools
        ]
        fields["tool_choice"] = _choice(body.tool_choice)
        fields["parallel_tool_calls"] = body.parallel_tool_calls
    return chat_body(fields)


def asks_logprobs(body: ResponseBody) -> bool:
    """Whether the answer comes with log-probabilities."""
    return LOGPROBS in (body.include or ())


def _check(body: ResponseBody) -> None:
    """Raise `ApiError` 400 for what a server without a store cannot do."""
    extra = body.model_extra or {}
    for name, given in (
        ("previous_response_id", body.previous_response_id),
        ("conversation", extra.get("conversation")),
        ("prompt", extra.get("prompt")),
        ("background", body.background),
    ):
        if given:
            raise unsupported(f"{name} is not supported: {_STATELESS}", name)
    if body.truncation == "auto":
        message = "truncation 'auto' is not supported; shorten the input"
        raise misfit(message, "truncation")
    if body.top_logprobs and not asks_logprobs(body):
        raise misfit(f"top_logprobs needs '{LOGPROBS}' in include", "top_logprobs")
    refuse_unsupported(extra, 1)


def _messages(body: ResponseBody) -> Iterator[dict[str, Any]]:
    if body.instructions:
        yield {"role": "system", "content": body.instructions}
    if isinstance(body.input, str):
        yield {"role": "user", "content": body.input}
        return
    for by_assistant, items in groupby(body.input, _is_by_assistant):
        if by_assistant:
            yield _assistant(items)
        else:
            yield from map(_message, items)


def _is_by_assistant(item: InputItem) -> bool:
    if isinstance(item, MessageItem):
        return item.role == "assistant"
    return not isinstance(item, FunctionCallOutputItem)


def _message(item: InputItem) -> dict[str, Any]:
    """Return a message that is not the assistant's."""
    if isinstance(item, FunctionCallOutputItem):
        return {"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}
    assert isinstance(item, MessageItem)
    return {"role": item.role, "content": _text(item.content)}


def _assistant(items: Iterator[InputItem]) -> dict[str, Any]:
    """Return one message for what the assistant thought, said and called in a row."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for item in items:
        match item:
            case MessageItem(content=content):
                texts.append(_text(content))
            case ReasoningItem():
                thoughts += [part.text for part in item.content or item.summary or ()]
            case FunctionCallItem():
                function = {"name": item.name, "arguments": item.arguments}
                calls.append({"id": item.call_id, "type": "function", "function": function})
    message: dict[str, Any] = {"role": "assistant", "content": join(texts)}
    if thoughts:
        message["reasoning_content"] = join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _text(content: InputContent) -> str:
    if isinstance(content, str):
        return content
    return join([p.text if isinstance(p, InputTextPart) else p.refusal for p in content])


def _response_format(text: TextOption | None) -> dict[str, Any] | None:
    """Return the form of the answer as chats have it, None for plain text."""
    form = None if text is None else text.format
    if isinstance(form, JsonSchemaText):
        schema = form.model_dump(by_alias=True, exclude={"type"}, exclude_none=True)
        return {"type": "json_schema", "json_schema": schema}
    return {"type": "json_object"} if isinstance(form, JsonObjectText) else None


def _choice(choice: str | NamedFunction | None) -> object:
    if isinstance(choice, NamedFunction):
        return {"type": "function", "function": {"name": choice.name}}
    return choice
