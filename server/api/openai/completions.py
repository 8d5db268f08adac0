"""`POST /v1/completions`, as the OpenAI API has it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.active_request import ActiveRequest
from server.api.caller import Caller, caller_of
from server.api.errors import ApiError, misfit, unsupported
from server.api.openai.best_answers import best_answers
from server.api.openai.completion_logprobs import CompletionLogprobs
from server.api.openai.prompt_scores import prompt_scores
from server.api.openai.token_text import TokenText
from server.api.prompt.processor import PromptProcessor, TokenizedPrompt
from server.api.request_body import JsonRoute
from server.api.request_builder import ParsedRequest
from server.api.responses import (
    GeneratedAnswer,
    collect,
    counts_continuously,
    respond,
    stream,
    usage,
    usage_tail,
)
from server.api.schemas import CompletionBody
from server.api.service import (
    Service,
    encoding_options,
    estimated_tokens,
    variant_in_model_name,
)
from server.api.unsupported_parameters import check_details, refuse_unsupported
from server.engine.sequence import Delta

DEFAULT_MAX_TOKENS = 16


def router(service: Service, prompts: PromptProcessor) -> APIRouter:
    """Return the route of `POST /v1/completions`."""
    routes = APIRouter(route_class=JsonRoute)
    texts = TokenText(service.model.tokenizer)

    @routes.post("/v1/completions")
    async def completions(body: CompletionBody, request: Request) -> Response:
        _check(body)
        best_of = body.best_of if body.best_of != (body.n or 1) else None
        scored = best_of is not None and body.logprobs is None  # to compare the answers
        caller = caller_of(request, "cmpl")
        parsed = ParsedRequest(
            prompts=await _prompts(service, prompts, body, caller),
            body=body,
            max_tokens=body.max_tokens,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            variant=variant_in_model_name(service, body.model),
            constraint=await service.builder.constraints.compile(body.constraint()),
            logprobs=0 if scored else body.logprobs,
            prompt_logprobs=_prompt_logprobs(body),
            best_of=best_of,
        )
        active = service.start(parsed, caller)
        common: dict[str, object] = {
            "id": active.request_id,
            "object": "text_completion",
            "created": active.created,
            "model": service.served_name,
            "system_fingerprint": service.model.fingerprint,
        }
        writer = _CompletionWriter(texts, active, body, parsed.prompts, common)
        if body.stream:
            tail = usage_tail(active, common, body.stream_options)
            return await stream(service, active, request, writer.chunks, tail=tail)
        answers = await collect(service, active, request)
        head = {**common, "usage": usage(active, answers), "trimtab": active.disclosure()}
        if best_of is not None:
            answers = best_answers(answers, best_of, body.n or 1)
        large = parsed.logprobs is not None or parsed.prompt_logprobs is not None
        return await respond(active, head, writer.choice, answers, large)

    return routes


@dataclass(slots=True)
class _CompletionWriter:
    """Writes the answers of a request, whole or in chunks; `common` are the fields of all chunks.

    `logprobs`, `echoed` and `sent` are the state of a stream: the tokens of each answer that wait
    for their text, the answers whose prompts were echoed, and how many token ids were sent of each.
    """

    texts: TokenText
    active: ActiveRequest
    body: CompletionBody
    prompts: list[TokenizedPrompt]
    common: dict[str, object]
    logprobs: list[CompletionLogprobs] = field(init=False)
    echoed: set[int] = field(default_factory=set)
    sent: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Start the stream's state."""
        self.logprobs = [self._no_logprobs() for _ in self.active.generations]

    def choice(self, index: int, answer: GeneratedAnswer) -> dict[str, object]:
        """Return a whole answer as a choice."""
        text = answer.text
        logprobs = self._no_logprobs()
        scored, prompt = self.body.logprobs is not None, self._prompt(index).tokens
        if self.body.echo:
            text = self._prompt_text(index) + text
            if scored:
                logprobs.add_prompt(prompt, answer.prompt_logprobs)
        for token in answer.logprobs:
            logprobs.add_written(token)
        choice: dict[str, object] = {
            "index": index,
            "text": text,
            "logprobs": logprobs.take(len(text), ended=True) if scored else None,
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self.body.prompt_logprobs is not None:
            choice["prompt_logprobs"] = prompt_scores(self.texts, answer.prompt_logprobs)
        if self.body.return_token_ids:
            choice |= {"token_ids": answer.token_ids, "prompt_token_ids": prompt}
        return choice

    def chunks(
        self, index: int, delta: Delta, answer: GeneratedAnswer
    ) -> Iterable[dict[str, object]]:
        """Yield the chunk of a delta, if it has text or the end."""
        ended, text, scored = delta.finish_reason is not None, delta.text, self.body.logprobs
        if self.body.echo and index not in self.echoed:
            if scored is not None and delta.prompt_logprobs is None:
                return  # it is not read yet
            self.echoed.add(index)
            text = self._prompt_text(index) + text
            if delta.prompt_logprobs is not None:
                self.logprobs[index].add_prompt(self._prompt(index).tokens, delta.prompt_logprobs)
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
        if scored is not None:
            echoed = len(self._prompt_text(index)) if self.body.echo else 0
            choice["logprobs"] = self.logprobs[index].take(echoed + len(answer.text), ended)
        if self.body.return_token_ids:
            choice["token_ids"] = answer.token_ids[self.sent.get(index, 0) :]
            if index not in self.sent:
                choice["prompt_token_ids"] = self._prompt(index).tokens
            self.sent[index] = len(answer.token_ids)
        chunk: dict[str, object] = {**self.common, "choices": [choice]}
        if answer.tokens <= 1 or ended:
            chunk["trimtab"] = self.active.disclosure()
        if counts_continuously(self.body.stream_options):
            chunk["usage"] = usage(self.active, [answer])
        yield chunk

    def _no_logprobs(self) -> CompletionLogprobs:
        shows_special = self.body.skip_special_tokens is False
        as_ids = bool(self.body.return_tokens_as_token_ids)
        return CompletionLogprobs(self.texts, as_ids, shows_special)

    def _prompt(self, index: int) -> TokenizedPrompt:
        return self.prompts[index // (self.body.n or 1)]

    def _prompt_text(self, index: int) -> str:
        """Return an answer's prompt as its tokens have it, special tokens included."""
        tokens = self._prompt(index).tokens
        return b"".join(self.texts.prompt(tokens)).decode(errors="replace")


def _check(body: CompletionBody) -> None:
    """Raise `ApiError` 400 for fields that do not fit together or are not supported."""
    refuse_unsupported(body.model_extra or {}, body.n or 1)
    if body.suffix:
        raise unsupported("suffix is not supported", "suffix")
    check_details(body)
    if body.max_tokens == 0 and not body.echo and body.prompt_logprobs is None:
        raise misfit("max_tokens 0 needs echo or prompt_logprobs", "max_tokens")
    if body.best_of is not None and body.best_of < (body.n or 1):
        raise misfit("best_of must be n or more", "best_of")
    if body.stream and body.best_of not in (None, body.n or 1):
        raise misfit("the best answers are known at the end: best_of has no stream", "best_of")


def _prompt_logprobs(body: CompletionBody) -> int | None:
    """Return how many alternatives are asked for beside each token of the prompt."""
    echoed = body.logprobs if body.echo else None
    asked = [count for count in (echoed, body.prompt_logprobs) if count is not None]
    return max(asked, default=None)


async def _prompts(
    service: Service, prompts: PromptProcessor, body: CompletionBody, caller: Caller
) -> list[TokenizedPrompt]:
    """Tokenise the prompts, which are texts or token ids. Raise `ApiError`."""
    entries = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    choices = body.best_of or body.n or 1
    if not entries:
        raise ApiError(400, "the prompt is empty", "prompt")
    if isinstance(entries[0], str):
        service.builder.check_answer_count(len(entries), choices)
        service.keep_place(caller, [estimated_tokens(text) for text in entries])
        return await prompts.texts(entries, encoding_options(body, special_tokens=True))
    ids = cast(list[list[int]], entries if isinstance(entries[0], list) else [entries])
    service.builder.check_answer_count(len(ids), choices)
    service.keep_place(caller, [len(one) for one in ids])
    options = encoding_options(body, special_tokens=False)
    return await prompts.ids(ids, options.keep_last)
