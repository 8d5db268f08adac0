"""`POST /v1/chat/completions`, as the OpenAI API has it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.chat.answer import ChatAnswer
from server.api.chat.body import ChatBody
from server.api.chat.events import (
    AnswerEnded,
    AnswerFailed,
    ChatEvent,
    ReasoningDelta,
    TextDelta,
    ToolArgumentsDelta,
    ToolCallBegun,
    ToolCallBroken,
)
from server.api.chat.run import ChatRun
from server.api.chat.start import ChatParts, start_chat
from server.api.error_envelope import envelope
from server.api.openai.chat_logprobs import logprob_entries
from server.api.openai.prompt_scores import prompt_scores
from server.api.openai.token_text import TokenText
from server.api.request_body import JsonRoute
from server.api.responses import DONE, counts_continuously, respond, sse, usage, usage_tail
from server.engine.sequence import TokenLogprob


def router(parts: ChatParts) -> APIRouter:
    """Return the route of `POST /v1/chat/completions`."""
    routes = APIRouter(route_class=JsonRoute)
    texts = TokenText(parts.service.model.tokenizer)

    @routes.post("/v1/chat/completions")
    async def chat(body: ChatBody, request: Request) -> Response:
        run = await start_chat(body, request, parts)
        active, service = run.active, parts.service
        common: dict[str, object] = {
            "id": active.request_id,
            "created": active.created,
            "model": service.served_name,
            "system_fingerprint": service.model.fingerprint,
        }
        if body.stream:
            common["object"] = "chat.completion.chunk"
            return await run.stream(_ChunkWriter(texts, run, common).texts())
        answers = await run.answers()
        head = {**common, "object": "chat.completion", "usage": usage(active, answers)}
        head["trimtab"] = active.disclosure()
        if body.prompt_logprobs is not None:
            head["prompt_logprobs"] = prompt_scores(texts, answers[0].prompt_logprobs)
        if body.return_token_ids:
            head["prompt_token_ids"] = run.prompt

        def choice(index: int, answer: ChatAnswer) -> dict[str, object]:
            found: dict[str, object] = {
                "index": index,
                "message": _message(answer),
                "logprobs": _logprobs(texts, body, answer.logprobs) if body.logprobs else None,
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
            }
            return {**found, "token_ids": answer.token_ids} if body.return_token_ids else found

        return await respond(active, head, choice, answers, large=bool(body.logprobs))

    return routes


def _message(answer: ChatAnswer) -> dict[str, object]:
    """Return a whole message of the assistant."""
    message: dict[str, object] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in answer.tool_calls
        ]
    return message


@dataclass(slots=True)
class _ChunkWriter:
    """Writes the chunks of a streamed chat; `common` are the fields of every chunk.

    `scored` and `sent` are the numbers of log-probabilities and of token ids of each answer that
    were sent.
    """

    tokens: TokenText
    run: ChatRun
    common: dict[str, object]
    scored: list[int] = field(init=False)
    sent: list[int] = field(init=False)

    def __post_init__(self) -> None:
        """Start with nothing sent."""
        self.scored = [0] * len(self.run.progress)
        self.sent = [0] * len(self.run.progress)

    async def texts(self) -> AsyncIterator[str]:
        """Yield the events of the stream, to the last."""
        for index in range(len(self.run.progress)):
            first = self._chunk(index, {"role": "assistant", "content": ""})
            if self.run.body.return_token_ids:
                first["prompt_token_ids"] = self.run.prompt
            yield sse({**first, "trimtab": self.run.active.disclosure()})
        async for event in self.run.events():
            if isinstance(event, AnswerFailed):
                yield sse(envelope(event.status, event.message))
                break
            if not isinstance(event, ToolCallBroken):
                yield sse(self._event_chunk(event))
        else:
            tail = usage_tail(self.run.active, self.common, self.run.body.stream_options)
            for chunk in tail(self.run.progress):
                yield sse(chunk)
        yield DONE

    def _event_chunk(self, event: ChatEvent) -> dict[str, object]:
        """Return the chunk of an event; log-probabilities go with the next chunk there is."""
        fields: dict[str, object] = {}
        answer, sent = self.run.progress[event.index], self.scored[event.index]
        if self.run.body.logprobs and len(answer.logprobs) > sent:
            fields["logprobs"] = _logprobs(self.tokens, self.run.body, answer.logprobs[sent:])
            self.scored[event.index] = len(answer.logprobs)
        if self.run.body.return_token_ids:
            fields["token_ids"] = answer.token_ids[self.sent[event.index] :]
            self.sent[event.index] = len(answer.token_ids)
        if not isinstance(event, AnswerEnded):
            return self._chunk(event.index, _delta(event), **fields)
        fields |= {"finish_reason": event.finish_reason, "stop_reason": event.stop_reason}
        last = self._chunk(event.index, {}, **fields)
        return {**last, "trimtab": self.run.active.disclosure()}

    def _chunk(self, index: int, delta: dict[str, object], **fields: object) -> dict[str, object]:
        """Return a chunk with one choice, in which `fields` replace the defaults."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **fields}
        chunk: dict[str, object] = {**self.common, "choices": [choice]}
        if counts_continuously(self.run.body.stream_options):
            chunk["usage"] = usage(self.run.active, [self.run.progress[index]])
        return chunk


def _delta(event: ChatEvent) -> dict[str, object]:
    """Return the `delta` of a chunk."""
    match event:
        case TextDelta(text=text):
            return {"content": text}
        case ReasoningDelta(text=text):
            return {"reasoning_content": text}
        case ToolCallBegun(call=call, id=call_id, name=name):
            function = {"name": name, "arguments": ""}
            begun = {"index": call, "id": call_id, "type": "function", "function": function}
            return {"tool_calls": [begun]}
        case ToolArgumentsDelta(call=call, text=text):
            return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}
    return {}


def _logprobs(texts: TokenText, body: ChatBody, tokens: list[TokenLogprob]) -> dict[str, object]:
    """Return the `logprobs` object of some tokens."""
    return {"content": logprob_entries(texts, tokens, bool(body.return_tokens_as_token_ids))}
