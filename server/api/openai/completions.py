"""`POST /v1/completions`, as the OpenAI API has it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.active_request import ActiveRequest
from server.api.caller import caller_of
from server.api.errors import ApiError
from server.api.openai.completion_logprobs import CompletionLogprobs
from server.api.openai.token_text import TokenText
from server.api.prompt.processor import PromptProcessor, TokenizedPrompt
from server.api.request_body import JsonRoute
from server.api.request_builder import ParsedRequest, RequestBuilder
from server.api.responses import GeneratedAnswer, collect, respond, stream, usage, usage_tail
from server.api.schemas import CompletionBody
from server.api.service import Service, encoding_options, variant_in_model_name
from server.api.unsupported_parameters import refuse_unsupported
from server.engine.sequence import Delta

DEFAULT_MAX_TOKENS = 16


def router(service: Service, prompts: PromptProcessor) -> APIRouter:
    """Return the route of `POST /v1/completions`."""
    routes = APIRouter(route_class=JsonRoute)
    texts = TokenText(service.model.tokenizer)

    @routes.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        _check(body)
        parsed = ParsedRequest(
            prompts=await _prompts(service.builder, prompts, body),
            body=body,
            max_tokens=body.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            variant=variant_in_model_name(service, body.model),
            constraint=await service.builder.constraints.compile(body.constraint()),
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        )
        active = service.start(parsed, caller_of(request, "cmpl"))
        common: dict[str, object] = {
            "id": active.request_id,
            "object": "text_completion",
            "created": active.created,
            "model": service.model.name,
            "system_fingerprint": service.model.fingerprint,
        }
        writer = _CompletionWriter(texts, active, body, parsed.prompts, common)
        if body.stream:
            tail = usage_tail(active, common, body.stream_options)
            return await stream(service, active, request, writer.chunks, tail=tail)
        answers = await collect(service, active, request)
        head = {**common, "usage": usage(active, answers), "trimtab": active.disclosure()}
        large = body.logprobs is not None
        return await respond(active, head, writer.choice, answers, large)

    return routes


@dataclass(slots=True)
class _CompletionWriter:
    """Writes the answers of a request, whole or in chunks; `common` are the fields of all chunks.

    `logprobs` and `echoed` are the state of a stream: the tokens of each answer that wait for
    their text, and the answers whose prompts were echoed.
    """

    texts: TokenText
    active: ActiveRequest
    body: CompletionBody
    prompts: list[TokenizedPrompt]
    common: dict[str, object]
    logprobs: list[CompletionLogprobs] = field(init=False)
    echoed: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Start the stream's state."""
        self.logprobs = [CompletionLogprobs(self.texts) for _ in self.active.generations]

    def choice(self, index: int, answer: GeneratedAnswer) -> dict[str, object]:
        """Return a whole answer as a choice."""
        text = answer.text
        logprobs = CompletionLogprobs(self.texts)
        if self.body.echo:
            text = self._prompt_text(index) + text
            if self.body.logprobs is not None:
                logprobs.add_prompt(self._prompt(index).tokens, answer.prompt_logprobs)
        for token in answer.logprobs:
            logprobs.add_written(token)
        scored = self.body.logprobs is not None
        return {
            "index": index,
            "text": text,
            "logprobs": logprobs.take(len(text), ended=True) if scored else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }

    def chunks(
        self, index: int, delta: Delta, answer: GeneratedAnswer
    ) -> Iterable[dict[str, object]]:
        """Yield the chunk of a delta, if it has text or the end."""
        ended = delta.finish_reason is not None
        text = delta.text
        if self.body.echo and index not in self.echoed:
            self.echoed.add(index)
            text = self._prompt_text(index) + text
        if delta.logprob is not None:
            self.logprobs[index].add_written(delta.logprob)
        if not text and not ended:
            return
        choice: dict[str, object] = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": None if delta.finish_reason is None else delta.finish_reason.value,
            "stop_reason": delta.stop_reason,
        }
        if self.body.logprobs is not None:
            choice["logprobs"] = self.logprobs[index].take(len(answer.text), ended)
        chunk: dict[str, object] = {**self.common, "choices": [choice]}
        if answer.tokens <= 1 or ended:
            chunk["trimtab"] = self.active.disclosure()
        options = self.body.stream_options
        if options is not None and options.continuous_usage_stats:
            chunk["usage"] = usage(self.active, [answer])
        yield chunk

    def _prompt(self, index: int) -> TokenizedPrompt:
        return self.prompts[index // self.active.choices]

    def _prompt_text(self, index: int) -> str:
        """Return an answer's prompt as its tokens have it, special tokens included."""
        tokens = self._prompt(index).tokens
        return b"".join(self.texts.prompt(tokens)).decode(errors="replace")


def _check(body: CompletionBody) -> None:
    """Raise `ApiError` 400 for fields that do not fit together or are not supported."""
    refuse_unsupported(body.model_extra or {}, body.n or 1)
    if body.suffix:
        raise ApiError(400, "suffix is not supported", "suffix")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    if body.stream and body.echo and body.logprobs is not None:
        raise ApiError(400, "echo with logprobs cannot be streamed", "stream")
    if body.max_tokens == 0 and (not body.echo or body.stream):
        raise ApiError(400, "max_tokens 0 needs echo, and no stream", "max_tokens")


async def _prompts(
    builder: RequestBuilder, prompts: PromptProcessor, body: CompletionBody
) -> list[TokenizedPrompt]:
    """Tokenise the prompts, which are texts or token ids. Raise `ApiError`."""
    entries = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not entries:
        raise ApiError(400, "the prompt is empty", "prompt")
    if isinstance(entries[0], str):
        builder.check_answer_count(len(entries), body)
        return await prompts.texts(entries, encoding_options(body, special_tokens=True))
    ids = cast(list[list[int]], entries if isinstance(entries[0], list) else [entries])
    builder.check_answer_count(len(ids), body)
    return await prompts.ids(ids)
