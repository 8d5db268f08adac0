"""`POST /v1/chat/completions`, as the OpenAI API has it."""

from collections.abc import Iterable
from dataclasses import dataclass

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.active_request import ActiveRequest
from server.api.errors import ApiError
from server.api.openai.token_text import MIN_LOGPROB, TokenText, shown
from server.api.prompt.processor import Chat, PromptProcessor, TokenizedPrompt
from server.api.request_body import JsonRoute
from server.api.request_builder import ParsedRequest
from server.api.responses import GeneratedAnswer, collect, respond, stream, usage, usage_tail
from server.api.schemas import ChatBody
from server.api.service import Service, encoding_options, request_id_of, variant_in_model_name
from server.api.unsupported_parameters import refuse_unsupported
from server.engine.sequence import Delta, TokenLogprob


def router(service: Service, prompts: PromptProcessor) -> APIRouter:
    """Return the route of `POST /v1/chat/completions`."""
    routes = APIRouter(route_class=JsonRoute)
    texts = TokenText(service.model.tokenizer)

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        _check(body)
        parsed = ParsedRequest(
            prompts=[await _prompt(prompts, body)],
            body=body,
            max_tokens=body.max_completion_tokens or body.max_tokens,
            variant=variant_in_model_name(service, body.model),
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )
        active = service.start(parsed, request_id_of(request, "chatcmpl"))
        common: dict[str, object] = {
            "id": active.request_id,
            "created": active.created,
            "model": service.model.name,
            "system_fingerprint": service.model.fingerprint,
        }
        if body.stream:
            common["object"] = "chat.completion.chunk"
            writer = _ChunkWriter(texts, active, body, common)
            tail = usage_tail(active, common, body.stream_options)
            return await stream(service, active, request, writer.chunks, writer.head(), tail)
        answers = await collect(service, active, request)
        head = {**common, "object": "chat.completion", "usage": usage(active, answers)}
        head["trimtab"] = active.disclosure()

        def choice(index: int, answer: GeneratedAnswer) -> dict[str, object]:
            return {
                "index": index,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": _logprobs(texts, answer.logprobs) if body.logprobs else None,
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
            }

        return await respond(active, head, choice, answers, large=bool(body.logprobs))

    return routes


@dataclass(frozen=True, slots=True)
class _ChunkWriter:
    """Writes the chunks of a streamed chat; `common` are the fields of every chunk."""

    texts: TokenText
    active: ActiveRequest
    body: ChatBody
    common: dict[str, object]

    def head(self) -> Iterable[dict[str, object]]:
        """Yield the first chunk of each answer: its role, and the variant that writes it."""
        role = {"role": "assistant", "content": ""}
        for index in range(len(self.active.generations)):
            yield {
                **self.common,
                "choices": [_choice(index, role)],
                "trimtab": self.active.disclosure(),
            }

    def chunks(
        self, index: int, delta: Delta, answer: GeneratedAnswer
    ) -> Iterable[dict[str, object]]:
        """Yield the chunk of a delta, if it has text, a log-probability or the end."""
        if not delta.text and delta.finish_reason is None and delta.logprob is None:
            return
        fields: dict[str, object] = {}
        if self.body.logprobs and delta.logprob is not None:
            fields["logprobs"] = _logprobs(self.texts, [delta.logprob])
        if delta.finish_reason is not None:
            fields["finish_reason"] = delta.finish_reason.value
            fields["stop_reason"] = delta.stop_reason
        content = {"content": delta.text} if delta.text else {}
        chunk: dict[str, object] = {**self.common, "choices": [_choice(index, content, **fields)]}
        if delta.finish_reason is not None:
            chunk["trimtab"] = self.active.disclosure()
        options = self.body.stream_options
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = usage(self.active, [answer])
        yield chunk


def _choice(index: int, delta: dict[str, str], **fields: object) -> dict[str, object]:
    """Return the choice of a chunk, in which `fields` replace the defaults."""
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **fields}


def _check(body: ChatBody) -> None:
    """Raise `ApiError` 400 for fields that do not fit together or are not supported."""
    refuse_unsupported(body.model_extra or {}, body.n or 1)
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    if not body.messages:
        raise ApiError(400, "messages is empty", "messages")


async def _prompt(prompts: PromptProcessor, body: ChatBody) -> TokenizedPrompt:
    """Render and tokenise the messages. Raise `ApiError`."""
    continue_final = body.continue_final_message
    add_generation_prompt = body.add_generation_prompt
    if continue_final and "add_generation_prompt" not in body.model_fields_set:
        add_generation_prompt = False
    if continue_final and add_generation_prompt:
        raise ApiError(
            400,
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
    variables = dict(body.chat_template_kwargs or {})
    if body.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", body.reasoning_effort)
    chat = Chat(
        messages=[message.for_template() for message in body.messages],
        variables=variables,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=continue_final,
    )
    return await prompts.chat(chat, encoding_options(body, special_tokens=False))


def _logprobs(texts: TokenText, tokens: list[TokenLogprob]) -> dict[str, object]:
    """Return the `logprobs` object of some tokens."""

    def entry(token: int, logprob: float) -> dict[str, object]:
        data = texts.data(token)
        return {"token": shown(data), "logprob": max(logprob, MIN_LOGPROB), "bytes": list(data)}

    return {
        "content": [
            {
                **entry(item.token, item.logprob),
                "top_logprobs": [entry(token, logprob) for token, logprob in _top(item)],
            }
            for item in tokens
        ]
    }


def _top(item: TokenLogprob) -> list[tuple[int, float]]:
    """Return the most likely tokens, which need not hold the chosen one, the likeliest first."""
    by_logprob = sorted(item.top, key=lambda pair: -pair[1])
    return by_logprob[: item.requested]
