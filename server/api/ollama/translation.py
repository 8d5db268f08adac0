"""From the bodies of Ollama's API to those of a chat."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from server.api.chat.body import ChatBody
from server.api.chat.translated import chat_body
from server.api.errors import misfit, unsupported
from server.api.ollama.body import AnswerBody, OllamaChatBody, OllamaGenerateBody, OllamaMessage
from server.api.service import Service
from server.api.unsupported_parameters import refuse_unsupported

_LATEST = ":latest"
# Options by the names that they have in a chat. None: they concern how a model is loaded, or what
# is cached, and this server decides that by itself.
_OPTIONS: dict[str, str | None] = {
    **{
        name: name
        for name in (
            *("seed", "temperature", "top_k", "top_p", "min_p"),
            *("stop", "presence_penalty", "frequency_penalty"),
        )
    },
    "repeat_penalty": "repetition_penalty",
    "num_predict": "max_tokens",
    **dict.fromkeys(
        (
            *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa"),
            *("low_vram", "f16_kv", "use_mmap", "use_mlock", "vocab_only", "logits_all"),
            *("embedding_only", "penalize_newline", "mirostat_tau", "mirostat_eta"),
        )
    ),
}
# Options that are not supported, and what they are where they change nothing.
_NEUTRAL: dict[str, tuple[float, ...]] = {
    "mirostat": (0,),
    "tfs_z": (0, 1),
    "typical_p": (0, 1),
    "repeat_last_n": (-1,),
}


def model_of(service: Service, name: str) -> str:
    """Return a model's name without the tag `latest`, which Ollama's clients add."""
    return name.removesuffix(_LATEST) if service.served_name != name else name


def chat_to_chat(body: OllamaChatBody, model: str) -> ChatBody:
    """Return the body of `POST /api/chat` as a chat with `model`. Raise `ApiError` 400."""
    messages = [_message(message) for message in _with_call_ids(body.messages)]
    fields = {**_common(body, model), "messages": messages, "tools": body.tools or None}
    if messages and messages[-1]["role"] == "assistant":
        fields["continue_final_message"] = True
    return chat_body(fields)


def generate_to_chat(body: OllamaGenerateBody, model: str) -> ChatBody:
    """Return the body of `POST /api/generate` as a chat of one message. Raise `ApiError` 400.

    With `raw` the message is the prompt as it stands.
    """
    for name in ("suffix", "template"):
        if getattr(body, name):
            raise unsupported(f"{name} is not supported", name)
    if body.raw and body.system:
        raise misfit("a raw prompt has no system message of its own", "system")
    messages = [{"role": "user", "content": body.prompt}]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    return chat_body({**_common(body, model), "messages": messages})


def _common(body: AnswerBody, model: str) -> dict[str, Any]:
    """Return the fields of all answers. Raise `ApiError` 400 for what is not supported."""
    refuse_unsupported(body.model_extra or {}, 1)
    fields: dict[str, Any] = {
        "model": model,
        "trimtab": body.trimtab,
        **_sampling(body.options or {}),
    }
    if body.format:
        schema = {"name": "answer", "schema": body.format, "strict": True}
        by_schema = {"type": "json_schema", "json_schema": schema}
        fields["response_format"] = {"type": "json_object"} if body.format == "json" else by_schema
    if body.think is not None:
        fields["chat_template_kwargs"] = {"enable_thinking": bool(body.think)}
        if isinstance(body.think, str):
            fields["reasoning_effort"] = body.think
    return fields


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options under their names in a chat. Raise `ApiError` 400 for unsupported ones.

    A negative `num_predict` bounds nothing.
    """
    fields: dict[str, Any] = {}
    for name, value in options.items():
        if name in _OPTIONS:
            field = _OPTIONS[name]
            if field is not None and value not in (None, []):
                fields[field] = value
        elif value is not None and value not in _NEUTRAL.get(name, ()):
            known = ", ".join(field for field in _OPTIONS if _OPTIONS[field] is not None)
            message = f"options: {name[:64]} is not supported; there are {known}"
            raise misfit(message, f"options.{name[:64]}")
    limit = fields.get("max_tokens")
    if isinstance(limit, int) and limit < 0:
        del fields["max_tokens"]
    return fields


def _with_call_ids(messages: list[OllamaMessage]) -> Iterator[OllamaMessage]:
    """Yield messages whose calls and results have ids, which Ollama's clients leave out.

    Results follow their calls in order.
    """
    open_calls: list[str] = []
    for at, message in enumerate(messages):
        if message.tool_calls:
            calls = [
                call.model_copy(update={"id": call.id or f"call_{at}_{number}"})
                for number, call in enumerate(message.tool_calls)
            ]
            open_calls = [str(call.id) for call in calls]
            yield message.model_copy(update={"tool_calls": calls})
        elif message.role == "tool" and message.tool_call_id is None and open_calls:
            yield message.model_copy(update={"tool_call_id": open_calls.pop(0)})
        else:
            yield message


def _message(message: OllamaMessage) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        fields["reasoning_content"] = message.thinking
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.tool_name is not None:
        fields["name"] = message.tool_name
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": json.dumps(call.function.arguments, ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    return fields
