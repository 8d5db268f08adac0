"""`POST /v1/completions`, as the OpenAI API has it."""

from collections.abc import Iterable
from functools import partial
from typing import cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.answers import Answer, collect, respond, stream, usage, usage_tail
from server.api.errors import ApiError
from server.api.openai.completion_scores import Scores
from server.api.openai.token_text import TokenText
from server.api.prompt.reader import Prompt
from server.api.request_body import JsonRoute
from server.api.schemas import CompletionBody
from server.api.service import Ask, Call, Service, call_id_of, encoding, variant_alias
from server.api.unsupported import refuse_unsupported
from server.engine.sequence import Delta

DEFAULT_MAX_TOKENS = 16


def router(service: Service) -> APIRouter:
    """The route, bound to a service."""
    routes = APIRouter(route_class=JsonRoute)
    texts = TokenText(service.model.tokenizer)

    @routes.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        _check(body)
        ask = Ask(
            prompts=await _prompts(service, body),
            body=body,
            max_tokens=body.max_tokens,
            default_tokens=DEFAULT_MAX_TOKENS,
            variant=variant_alias(service, body.model),
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        )
        call = service.start(ask, call_id_of(request, "cmpl"))
        common = {
            "id": call.call_id,
            "object": "text_completion",
            "created": call.created,
            "model": service.model.name,
            "system_fingerprint": service.model.fingerprint,
        }
        if not body.stream:
            answers = await collect(service, call, request)
            head = {**common, "usage": usage(call, answers), "trimtab": call.disclosure()}
            choice = partial(_choice, texts, body, ask)
            return await respond(call, head, choice, answers, large=body.logprobs is not None)
        return _streamed(service, texts, call, body, ask, common)

    return routes


def _streamed(
    service: Service,
    texts: TokenText,
    call: Call,
    body: CompletionBody,
    ask: Ask,
    common: dict[str, object],
) -> Response:
    options = body.stream_options
    scores = [Scores(texts) for _ in call.generations]
    echoed: set[int] = set()

    def chunks(index: int, delta: Delta, answer: Answer) -> Iterable[dict[str, object]]:
        ended = delta.finish_reason is not None
        text = delta.text
        if body.echo and index not in echoed:
            echoed.add(index)
            text = _prompt_text(texts, ask, body, index) + text
        if delta.logprob is not None:
            scores[index].written(delta.logprob)
        if not text and not ended:
            return
        choice: dict[str, object] = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": None if delta.finish_reason is None else delta.finish_reason.value,
            "stop_reason": delta.stop_reason,
        }
        if body.logprobs is not None:
            choice["logprobs"] = scores[index].take(len(answer.text), ended)
        chunk: dict[str, object] = {**common, "choices": [choice]}
        if answer.tokens <= 1 or ended:
            chunk["trimtab"] = call.disclosure()
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = usage(call, [answer])
        yield chunk

    return stream(service, call, chunks, tail=usage_tail(call, common, options))


def _check(body: CompletionBody) -> None:
    refuse_unsupported(body.model_extra or {}, body.n or 1)
    if body.suffix:
        raise ApiError(400, "suffix is not supported", "suffix")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if body.stream and body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed", "stream")
    if body.max_tokens == 0 and (not body.echo or body.stream):
        raise ApiError(400, "max_tokens 0 needs echo, and no stream", "max_tokens")


async def _prompts(service: Service, body: CompletionBody) -> list[Prompt]:
    given = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not given:
        raise ApiError(400, "the prompt is empty", "prompt")
    many = cast(list[list[int]], given if isinstance(given[0], list) else [given])
    if isinstance(given[0], str):
        service.check_count(len(given), body)
        return await service.prompts.texts(given, encoding(body, special=True))
    service.check_count(len(many), body)
    return await service.prompts.ids(many)


def _prompt_text(texts: TokenText, ask: Ask, body: CompletionBody, index: int) -> str:
    """An echoed prompt as its tokens have it, special tokens included."""
    prompt = ask.prompts[index // (body.n or 1)]
    return b"".join(texts.prompt(prompt.tokens)).decode(errors="replace")


def _choice(
    texts: TokenText, body: CompletionBody, ask: Ask, index: int, answer: Answer
) -> dict[str, object]:
    text = answer.text
    scores = Scores(texts)
    if body.echo:
        text = _prompt_text(texts, ask, body, index) + text
        if body.logprobs is not None:
            scores.prompt(ask.prompts[index // (body.n or 1)].tokens, answer.prompt_logprobs)
    for score in answer.logprobs:
        scores.written(score)
    return {
        "index": index,
        "text": text,
        "logprobs": None if body.logprobs is None else scores.take(len(text), ended=True),
        "finish_reason": answer.finish_reason,
        "stop_reason": answer.stop_reason,
    }
