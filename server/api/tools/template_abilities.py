"""What a chat template can write, found by rendering a few chats with it."""

import json
from dataclasses import dataclass, replace
from typing import Any

from server.api.prompt.chat_template import Chat, ChatTemplate, TemplateFailedError

_MAX_BYTES = 2**20
_NAME, _VALUE, _RESULT, _SYSTEM = "probe_tool", "probe-value", "probe-result", "probe-system"
_TOOL = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    },
}
_TEXT = f'{{"key": "{_VALUE}"}}'
_USER = {"role": "user", "content": "probe"}
# Names under which templates read tools.
_VARIABLES = ("tools", "xml_tools", "custom_tools")


@dataclass(frozen=True, slots=True)
class TemplateAbilities:
    """What a template writes by itself.

    `tools` is the variable by which it gets them; "message" stands for the field `tools` of a
    system message, None for no way. `calls`: it writes calls, their arguments as an object, or as
    JSON text with `text_arguments`; `several` of them in a message. `results`: it knows messages
    with what a tool returned.
    `system`: it writes system messages, and `developer` those of the role that replaces it.
    """

    tools: str | None = None
    calls: bool = False
    text_arguments: bool = False
    several: bool = True
    results: bool = False
    system: bool = False
    developer: bool = False


def find_abilities(template: ChatTemplate) -> TemplateAbilities:
    """Return what a template can write."""
    as_object = _writes_calls(template, {"key": _VALUE})
    as_text = not as_object and _writes_calls(template, _TEXT)
    calls = as_object or as_text
    return TemplateAbilities(
        tools=_tools_variable(template),
        calls=calls,
        text_arguments=as_text,
        several=not calls or _writes_calls(template, _TEXT if as_text else {"key": _VALUE}, 2),
        results=calls or _writes_results(template),
        system=_writes(template, [{"role": "system", "content": _SYSTEM}, _USER], _SYSTEM),
        developer="developer" in template.source,
    )


def with_tools(chat: Chat, tools: list[dict[str, Any]], variable: str) -> Chat:
    """Return a chat whose template gets tools by the `tools` of its abilities, `variable`."""
    if variable == "tools":
        return replace(chat, tools=tools)
    if variable != "message":
        return replace(chat, variables={**chat.variables, variable: tools})
    messages = chat.messages
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    functions = json.dumps([tool["function"] for tool in tools], ensure_ascii=False)
    return replace(chat, messages=[{**messages[0], "tools": functions}, *messages[1:]])


def _tools_variable(template: ChatTemplate) -> str | None:
    for variable in (*_VARIABLES, "message"):
        if _NAME in _text(template, with_tools(Chat([_USER], {}), [_TOOL], variable)):
            return variable
    return None


def _writes_calls(template: ChatTemplate, arguments: object, count: int = 1) -> bool:
    """Whether a template writes so many calls in a message, and the result of the first."""
    function = {"name": _NAME, "arguments": arguments}
    calls = [{"id": f"probe123{i}", "type": "function", "function": function} for i in range(count)]
    messages: list[dict[str, Any]] = [
        _USER,
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "probe1230", "name": _NAME, "content": _RESULT},
    ]
    text = _text(template, Chat(messages, {}))
    whole = text.count(_NAME) >= count and text.count(_VALUE) >= count and _RESULT in text
    return whole and '\\"key\\"' not in text


def _writes_results(template: ChatTemplate) -> bool:
    """Whether a template that does not write calls knows the role `tool`."""
    named = any(f"{quote}tool{quote}" in template.source for quote in "'\"")
    messages: list[dict[str, Any]] = [
        _USER,
        {"role": "assistant", "content": "probe"},
        {"role": "tool", "tool_call_id": "probe1230", "name": _NAME, "content": _RESULT},
    ]
    return named and _writes(template, messages, _RESULT)


def _writes(template: ChatTemplate, messages: list[dict[str, Any]], part: str) -> bool:
    return part in _text(template, Chat(messages, {}))


def _text(template: ChatTemplate, chat: Chat) -> str:
    """Return the text of a chat; "" if the template fails."""
    try:
        return template.render(chat, _MAX_BYTES)
    except TemplateFailedError:
        return ""
