"""A prompt that goes to the model as it stands, without the chat template."""

from starlette.requests import Request

from server.api.caller import caller_of
from server.api.chat.body import ChatBody
from server.api.chat.parser import PlainAnswer
from server.api.chat.run import ChatRun
from server.api.chat.start import ChatParts
from server.api.request_builder import ParsedRequest
from server.api.service import encoding_options, estimated_tokens, variant_in_model_name
from server.api.unsupported_parameters import refuse_unsupported


async def start_raw(body: ChatBody, request: Request, parts: ChatParts, id_prefix: str) -> ChatRun:
    """Start the answer to a body whose one message is the prompt. Raise `ApiError`."""
    refuse_unsupported(body.model_extra or {}, 1)
    (message,) = body.messages
    caller = caller_of(request, id_prefix)
    parts.service.keep_place(caller, [estimated_tokens(message.text)])
    options = encoding_options(body, special_tokens=True)
    (prompt,) = await parts.prompts.texts([message.text], options)
    parsed = ParsedRequest(
        prompts=[prompt],
        body=body,
        max_tokens=body.max_tokens,
        variant=variant_in_model_name(parts.service, body.model),
        constraint=await parts.service.builder.constraints.compile(body.constraint()),
    )
    active = parts.service.start(parsed, caller)
    return ChatRun(parts.service, active, request, body, [PlainAnswer(0)], prompt.tokens)
