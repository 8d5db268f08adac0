"""From the bodies of Anthropic's API to those of a chat."""

import json
from collections.abc import Iterator
from typing import Any

from server.api.anthropic.body import (
    ClientTool,
    ContentBlock,
    CountTokensBody,
    MessagesBody,
    RedactedThinkingBlock,
    TextBlock,
    TextContent,
    ThinkingBlock,
    ToolChoiceBody,
    ToolResultBlock,
    ToolUseBlock,
)
from server.api.chat.body import ChatBody
from server.api.chat.translated import chat_body, join
from server.api.errors import misfit
from server.api.unsupported_parameters import refuse_unsupported

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(body: CountTokensBody) -> ChatBody:
    """Return the same request as a chat. Raise `ApiError` 400.

    An assistant's message at the end is continued, as Anthropic's API has it.
    """
    refuse_unsupported(body.model_extra or {}, 1)
    fields: dict[str, Any] = {"model": body.model, "messages": list(_messages(body))}
    if body.messages and body.messages[-1].role == "assistant":
        fields["continue_final_message"] = True
    if body.tools:
        fields["tools"] = [_tool(tool) for tool in body.tools]
        fields["tool_choice"] = _choice(body.tool_choice)
        if body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use:
            fields["parallel_tool_calls"] = False
    if body.thinking is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": body.thinking.type != "disabled"}
    config = body.output_config
    if config is not None:
        fields["reasoning_effort"] = config.effort
        if config.format is not None:
            schema = {"name": "answer", "schema": config.format.schema_, "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(body, MessagesBody):
        fields |= _sampling(body)
    return chat_body(fields)


def _sampling(body: MessagesBody) -> dict[str, Any]:
    """Return the fields that say how the answer is written."""
    return {
        "max_tokens": body.max_tokens,
        "stop": body.stop_sequences or None,
        "stream": body.stream,
        "temperature": body.temperature,
        "top_k": body.top_k,
        "top_p": body.top_p,
        "trimtab": body.trimtab,
    }


def _messages(body: CountTokensBody) -> Iterator[dict[str, Any]]:
    if body.system:
        yield {"role": "system", "content": _text(body.system)}
    for turn in body.messages:
        blocks = turn.content
        if isinstance(blocks, str):
            yield {"role": turn.role, "content": blocks}
        elif turn.role == "assistant":
            yield _assistant(blocks)
        else:
            yield from _user(blocks)


def _user(blocks: list[ContentBlock]) -> Iterator[dict[str, Any]]:
    """Yield a user's message; results of tools become messages of their own, in order."""
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, TextBlock):
            texts.append(block.text)
            continue
        if not isinstance(block, ToolResultBlock):
            raise misfit(f"messages: a user's message has no {block.type}", "messages")
        if texts:
            yield {"role": "user", "content": join(texts)}
            texts = []
        result = _text(block.content or "")
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": result}
    if texts or not blocks:
        yield {"role": "user", "content": join(texts)}


def _assistant(blocks: list[ContentBlock]) -> dict[str, Any]:
    """Return an assistant's message with its calls of tools."""
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    for block in blocks:
        match block:
            case TextBlock(text=text):
                texts.append(text)
            case ThinkingBlock(thinking=text):
                thoughts.append(text)
            case ToolUseBlock():
                arguments = json.dumps(block.input, ensure_ascii=False)
                function = {"name": block.name, "arguments": arguments}
                calls.append({"id": block.id, "type": "function", "function": function})
            case RedactedThinkingBlock():
                pass
            case _:
                refusal = f"messages: an assistant's message has no {block.type}"
                raise misfit(refusal, "messages")
    message: dict[str, Any] = {"role": "assistant", "content": join(texts)}
    if thoughts:
        message["reasoning_content"] = join(thoughts)
    if calls:
        message["tool_calls"] = calls
    return message


def _text(content: TextContent) -> str:
    return content if isinstance(content, str) else join([block.text for block in content])


def _tool(tool: ClientTool) -> dict[str, Any]:
    function = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    return {"type": "function", "function": function}


def _choice(choice: ToolChoiceBody | None) -> object:
    """Return a choice of tools as chats have it. Raise `ApiError` 400 if a name is missing."""
    if choice is None:
        return None
    if choice.type != "tool":
        return _CHOICES[choice.type]
    if choice.name is None:
        raise misfit("tool_choice: which tool? name is missing", "tool_choice")
    return {"type": "function", "function": {"name": choice.name}}
