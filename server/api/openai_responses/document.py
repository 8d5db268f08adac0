"""The response object of the Responses API, and the items of its output."""

import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from server.api.chat.answer import ChatAnswer, ToolCall
from server.api.chat.run import ChatRun
from server.api.openai_responses.body import ResponseBody
from server.api.responses import usage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = dict[str, Any]
"""An item of the output as JSON: a message, a reasoning or a function call."""

COMPLETED, INCOMPLETE, IN_PROGRESS, FAILED = "completed", "incomplete", "in_progress", "failed"


class ResponseDocument:
    """Writes the response object of a request, as it begins, ends or fails."""

    def __init__(self, run: ChatRun, body: ResponseBody) -> None:
        self._run = run
        self._body = body
        self._model = run.service.model
        self._name = run.service.served_name

    def begun(self) -> dict[str, Any]:
        """Return the response before it has any output."""
        return self._response(IN_PROGRESS, [])

    def ended(self, output: Sequence[Item], finish_reason: str | None) -> dict[str, Any]:
        """Return the response with all of its output."""
        status = status_of(finish_reason)
        response = self._response(status, output)
        if status == INCOMPLETE:
            response["incomplete_details"] = {"reason": "max_output_tokens"}
        response["usage"] = self._usage()
        return response

    def failed(self, output: Sequence[Item], message: str) -> dict[str, Any]:
        """Return a response that failed before its end."""
        error = {"code": "server_error", "message": message}
        return {**self._response(FAILED, output), "error": error}

    def _response(self, status: str, output: Sequence[Item]) -> dict[str, Any]:
        body, active = self._body, self._run.active
        given = body.model_dump(by_alias=True, exclude_none=True, exclude_unset=True)
        return {
            "id": active.request_id,
            "object": "response",
            "created_at": active.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": self._name,
            "output": list(output),
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": given.get("reasoning", {"effort": None, "summary": None}),
            "service_tier": "default",
            "store": False,
            "temperature": body.temperature,
            "text": given.get("text", {"format": {"type": "text"}}),
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": given.get("tools", []),
            "top_logprobs": body.top_logprobs or 0,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "trimtab": active.disclosure(),
        }

    def _usage(self) -> dict[str, Any]:
        counted: dict[str, Any] = usage(self._run.active, self._run.progress)
        thoughts = "".join(answer.reasoning for answer in self._run.progress)
        return {
            "input_tokens": counted.pop("prompt_tokens"),
            "input_tokens_details": {
                **counted.pop("prompt_tokens_details"),
                "cache_write_tokens": 0,
            },
            "output_tokens": counted.pop("completion_tokens"),
            "output_tokens_details": {"reasoning_tokens": _count(self._model.tokenizer, thoughts)},
            **counted,
        }


def output_of(answer: ChatAnswer, logprobs: list[dict[str, object]]) -> list[Item]:
    """Return the items of a whole answer, in which a message comes before calls of functions."""
    items: list[Item] = []
    if answer.reasoning:
        items.append(reasoning_item(new_id("rs"), answer.reasoning))
    if answer.text or not answer.tool_calls:
        items.append(message_item(new_id("msg"), answer.text, logprobs))
    items += [call_item(new_id("fc"), call) for call in answer.tool_calls]
    items[-1]["status"] = status_of(answer.finish_reason)
    return items


def status_of(finish_reason: str | None) -> str:
    """Return the status of what ended for a reason."""
    return INCOMPLETE if finish_reason == "length" else COMPLETED


def new_id(prefix: str) -> str:
    """Return a new id of an item."""
    return f"{prefix}_{uuid.uuid4().hex}"


def message_item(item_id: str, text: str, logprobs: list[dict[str, object]]) -> Item:
    """Return a whole message."""
    content = [text_part(text, logprobs)]
    message = {"id": item_id, "type": "message", "role": "assistant", "content": content}
    return {**message, "status": COMPLETED}


def text_part(text: str, logprobs: list[dict[str, object]]) -> Item:
    """Return the text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def reasoning_item(item_id: str, text: str) -> Item:
    """Return whole thoughts."""
    content = [reasoning_part(text)]
    item = {"id": item_id, "type": "reasoning", "summary": [], "content": content}
    return {**item, "status": COMPLETED}


def reasoning_part(text: str) -> Item:
    """Return the text of thoughts."""
    return {"type": "reasoning_text", "text": text}


def call_item(item_id: str, call: ToolCall) -> Item:
    """Return a whole call of a function."""
    item = {"id": item_id, "type": "function_call", "call_id": call.id, "name": call.name}
    return {**item, "arguments": call.arguments, "status": COMPLETED}


def _count(tokenizer: "PreTrainedTokenizerBase", text: str) -> int:
    """Return about how many tokens a text has that the model wrote."""
    return len(tokenizer.encode(text, add_special_tokens=False)) if text else 0
