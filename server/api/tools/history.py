"""Messages with calls and results, as a model's chat template takes them."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from server.api.tools.template_abilities import TemplateAbilities
from server.api.tools.tool_form import ToolForm, WrittenCall

Message = dict[str, Any]
_SHORT_ID = 9  # letters and digits


def adapt_history(
    messages: Sequence[Message], form: ToolForm, abilities: TemplateAbilities
) -> list[Message]:
    """Return messages that the template can write.

    Where it cannot write calls, they become text as the model writes it; where it does not know
    what tools return, that becomes messages of the user.
    """
    adapted: list[Message] = []
    for role, group in groupby(messages, key=lambda message: message["role"]):
        if role == "tool" and not abilities.results:
            adapted.append(_result_text(group))
        elif role == "developer" and not abilities.developer:
            adapted += [{**message, "role": "system"} for message in group]
        else:
            adapted += [_adapt(message, form, abilities) for message in group]
    return adapted


def with_system_text(
    messages: Sequence[Message], text: str, abilities: TemplateAbilities
) -> list[Message]:
    """Return messages with `text` in the system message, or in the first one if there is none."""
    first = messages[0]
    if first["role"] not in ("system", "developer") and abilities.system:
        return [{"role": "system", "content": text}, *messages]
    parts = (first["content"], text) if abilities.system else (text, first["content"])
    return [{**first, "content": "\n\n".join(part for part in parts if part)}, *messages[1:]]


def short_id(call_id: str) -> str:
    """Return an id of nine letters and digits: the given one, or one that always stands for it."""
    if len(call_id) == _SHORT_ID and call_id.isascii() and call_id.isalnum():
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:_SHORT_ID]


def _adapt(message: Message, form: ToolForm, abilities: TemplateAbilities) -> Message:
    if message.get("tool_calls"):
        if not abilities.calls:
            return _calls_as_text(message, form)
        calls = [_adapt_call(call, form, abilities) for call in message["tool_calls"]]
        return {**message, "tool_calls": calls}
    if form.short_ids and message.get("tool_call_id"):
        return {**message, "tool_call_id": short_id(message["tool_call_id"])}
    return message


def _calls_as_text(message: Message, form: ToolForm) -> Message:
    functions = [call["function"] for call in message["tool_calls"]]
    written = form.write([WrittenCall(one["name"], one["arguments"]) for one in functions])
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    content = "\n".join(part for part in (message["content"], written) if part)
    return {**rest, "content": content}


def _adapt_call(call: Message, form: ToolForm, abilities: TemplateAbilities) -> Message:
    function = call["function"]
    if not abilities.text_arguments:
        function = {**function, "arguments": _as_object(function["arguments"])}
    adapted = {**call, "function": function}
    if form.short_ids:
        adapted["id"] = short_id(call.get("id") or "")
    return adapted


def _as_object(arguments: str) -> object:
    """Return arguments as an object; as the text that they are if they are none."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _result_text(messages: Iterable[Message]) -> Message:
    """Return what tools returned as one message of the user."""
    texts = [f"<tool_response>\n{message['content']}\n</tool_response>" for message in messages]
    return {"role": "user", "content": "\n".join(texts)}
