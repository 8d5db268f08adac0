"""`POST /v1/chat/completions`, as the OpenAI API has it."""

from collections.abc import Iterable
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.answers import Answer, collect, respond, stream, usage, usage_tail
from server.api.errors import ApiError
from server.api.openai.token_text import LEAST, TokenText, shown
from server.api.prompt.reader import Prompt
from server.api.request_body import JsonRoute
from server.api.schemas import ChatBody
from server.api.service import Ask, Call, Service, call_id_of, encoding, variant_alias
from server.api.unsupported import refuse_unsupported
from server.engine.sequence import Delta, TokenLogprob


def router(service: Service) -> APIRouter:
    """The route, bound to a service."""
    routes = APIRouter(route_class=JsonRoute)
    texts = TokenText(service.model.tokenizer)

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        _check(body)
        ask = Ask(
            prompts=[await _prompt(service, body)],
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
            head = {**common, "object": "chat.completion", "usage": usage(call, answers)}
            head["trimtab"] = call.disclosure()
            choice = partial(_choice, texts, bool(body.logprobs))
            return await respond(call, head, choice, answers, large=bool(body.logprobs))
        common["object"] = "chat.completion.chunk"
        return _streamed(service, texts, call, body, common)

    return routes


def _choice(texts: TokenText, logprobs: bool, index: int, answer: Answer) -> dict[str, object]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text},
        "logprobs": _logprobs(texts, answer.logprobs) if logprobs else None,
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    }


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
    refuse_unsupported(body.model_extra or {}, body.n or 1)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if not body.messages:
        raise ApiError(400, "messages is empty", "messages")


async def _prompt(service: Service, body: ChatBody) -> Prompt:
    continued = body.continue_final_message
    begun = body.add_generation_prompt
    if continued and "add_generation_prompt" not in body.model_fields_set:
        begun = False
    if continued and begun:
        raise ApiError(
            400,
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    messages = [message.for_template() for message in body.messages]
    how = encoding(body, special=False)
    return await service.prompts.chat(messages, variables, how, begun, continued)


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
