"""`POST /v1/chat/completions`, as the OpenAI API has it."""

from collections.abc import Iterable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from jinja2.exceptions import TemplateError

from server.api.answers import Answer, collect, stream, usage, usage_tail
from server.api.errors import ApiError
from server.api.protocol import ChatBody
from server.api.service import Ask, Call, Prompt, Service, call_id_of, variant_alias
from server.api.token_text import LEAST, TokenText, shown
from server.engine.sequence import Delta, TokenLogprob


def router(service: Service) -> APIRouter:
    """The route, bound to a service."""
    routes = APIRouter()
    texts = TokenText(service.model.tokenizer)

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        _check(body)
        ask = Ask(
            prompts=[_prompt(service, body)],
            body=body,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            variant=variant_alias(service, body.model),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        call = service.start(ask, call_id_of(request, "chatcmpl"))
        common = {
            "id": call.call_id,
            "created": call.created,
            "model": service.model.name,
            "system_fingerprint": service.model.fingerprint,
        }
        if not body.stream:
            answers = await collect(service, call, request)
            choices = [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": answer.text},
                    "logprobs": _logprobs(texts, answer.logprobs) if body.logprobs else None,
                    "finish_reason": answer.finish_reason,
                    "stop_reason": answer.stop_reason,
                }
                for index, answer in enumerate(answers)
            ]
            full = {**common, "object": "chat.completion", "choices": choices}
            full |= {"usage": usage(call, answers), "trimtab": call.disclosure()}
            return JSONResponse(full, headers=call.headers())
        common["object"] = "chat.completion.chunk"
        return _streamed(service, texts, call, body, common)

    return routes


def _streamed(
    service: Service, texts: TokenText, call: Call, body: ChatBody, common: dict[str, object]
) -> Response:
    options = body.stream_options

    def choice(index: int, delta: dict[str, str], **more: object) -> dict[str, object]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}

    head = [
        {
            **common,
            "choices": [choice(index, {"role": "assistant", "content": ""})],
            "trimtab": call.disclosure(),
        }
        for index in range(len(call.generations))
    ]

    def chunks(index: int, delta: Delta, answer: Answer) -> Iterable[dict[str, object]]:
        if not delta.text and delta.finish_reason is None and delta.logprob is None:
            return
        more: dict[str, object] = {}
        if body.logprobs and delta.logprob is not None:
            more["logprobs"] = _logprobs(texts, [delta.logprob])
        if delta.finish_reason is not None:
            more["finish_reason"] = delta.finish_reason.value
            more["stop_reason"] = delta.stop_reason
        content = {"content": delta.text} if delta.text else {}
        chunk: dict[str, object] = {**common, "choices": [choice(index, content, **more)]}
        if delta.finish_reason is not None:
            chunk["trimtab"] = call.disclosure()
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = usage(call, [answer])
        yield chunk

    return stream(service, call, chunks, head, usage_tail(call, common, options))


def _check(body: ChatBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if body.tools and body.tool_choice != "none":
        raise ApiError(400, "tools are not supported", "tools")
    if body.response_format is not None and body.response_format.get("type") != "text":
        raise ApiError(400, "only response_format text is supported", "response_format")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if not body.messages:
        raise ApiError(400, "messages is empty", "messages")


def _prompt(service: Service, body: ChatBody) -> Prompt:
    tokenizer = service.model.tokenizer
    if tokenizer.chat_template is None:
        raise ApiError(400, "this model has no chat template; use /v1/completions", "messages")
    if body.continue_final_message and "add_generation_prompt" not in body.model_fields_set:
        body.add_generation_prompt = False
    try:
        text = tokenizer.apply_chat_template(
            [message.for_template() for message in body.messages],
            tokenize=False,
            add_generation_prompt=body.add_generation_prompt,
            continue_final_message=body.continue_final_message,
            **(body.chat_template_kwargs or {}),
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise ApiError(400, f"the chat template refused the messages: {error}") from error
    prompt = service.tokenize(text, special=False)
    # The analyzer reads what the user said, not the template's frame around it.
    said = "\n".join(str(message.for_template()["content"]) for message in body.messages)
    return Prompt(prompt.tokens, said[: len(prompt.text)])


def _logprobs(texts: TokenText, scored: list[TokenLogprob]) -> dict[str, object]:
    def entry(token: int, value: float) -> dict[str, object]:
        data = texts.data(token)
        return {"token": shown(data), "logprob": max(value, LEAST), "bytes": list(data)}

    return {
        "content": [
            {
                **entry(item.token, item.logprob),
                "top_logprobs": [entry(token, value) for token, value in _likeliest(item)],
            }
            for item in scored
        ]
    }


def _likeliest(item: TokenLogprob) -> list[tuple[int, float]]:
    """The alternatives by falling log-probability, without the chosen token if it is not one."""
    alternatives = sorted(item.top, key=lambda pair: -pair[1])
    return alternatives[: item.asked]
