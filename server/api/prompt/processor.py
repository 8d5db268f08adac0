"""From the prompts of a request to tokens, beside the event loop and bounded in time and size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from server.api.bounded_worker import BoundedWorker
from server.api.errors import ApiError, misfit
from server.api.prompt.chat_template import (
    Chat,
    ChatTemplate,
    TemplateFailedError,
    TooMuchTextError,
)
from server.api.prompt.encoder import PromptEncoder, context_length_error

_MAX_ANALYSED_CHARACTERS = 100_000
_END_CHARACTERS = 64
_SHORT_CHARACTERS = 2**15  # texts of up to so many are tokenised quickly
_DEFAULT_TEMPLATE_BYTES = 2**24  # that a template may write, where tokens have no longest text
_MIN_TEMPLATE_BYTES = 2**20
# Variables of well-known templates, which clients set for any model.
_IGNORED_VARIABLES = {"enable_thinking", "thinking", "reasoning_effort"}
_PLAIN_TEXT_ROLES = {"system", "developer", "user", "assistant", "tool"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """A prompt's token ids, the text that the analyzer reads, and the end of the whole text."""

    tokens: list[int]
    text: str
    end: str = ""


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """How text becomes tokens.

    `special` puts the tokenizer's own tokens around it; `plain` makes control tokens in it text.
    Of the tokens the last `keep_last` are kept; if that is below 0, as many as leave room for so
    many tokens of an answer; if None, all.
    """

    special: bool
    plain: bool
    keep_last: int | None = None


class PromptProcessor:
    """Makes tokens of texts, token ids and chats. `context_tokens` bounds each prompt.

    Short texts, long texts and chat templates have a thread each, so that none of them waits for
    a slower kind of work.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        template: ChatTemplate | TemplateFailedError,
        context_tokens: int,
    ) -> None:
        self._encoder = encoder
        self.template = template
        self._context_tokens = context_tokens
        self._max_template_bytes = _DEFAULT_TEMPLATE_BYTES
        if encoder.bound is not None:
            fitting = context_tokens * encoder.bound.bytes_per_token
            self._max_template_bytes = max(_MIN_TEMPLATE_BYTES, fitting)
        self._short_texts = BoundedWorker("short-prompts")
        self._long_texts = BoundedWorker("long-prompts")
        self._templates = BoundedWorker("chats")

    async def texts(self, texts: list[str], options: EncodingOptions) -> list[TokenizedPrompt]:
        """Tokenise texts. Raise `ApiError`."""

        def work() -> list[TokenizedPrompt]:
            return [self._encode(text, options) for text in texts]

        return await self._run(work, sum(map(len, texts)))

    async def ids(
        self, prompts: list[list[int]], keep_last: int | None = None
    ) -> list[TokenizedPrompt]:
        """Check prompts of token ids. Raise `ApiError` for ids that the model does not have.

        `keep_last` is as `EncodingOptions` has it.
        """
        kept = self._kept(keep_last)

        def work() -> list[TokenizedPrompt]:
            return [
                self._check_ids(tokens if kept is None else tokens[-kept:]) for tokens in prompts
            ]

        return await self._run(work, sum(map(len, prompts)))

    async def chat(self, chat: Chat, options: EncodingOptions) -> TokenizedPrompt:
        """Render a chat with the model's template and tokenise it. Raise `ApiError`."""
        text = await self.rendered(chat, options)
        # Control tokens in a plain chat were marked before it was rendered.
        encoding = replace(options, plain=False)
        prompt = await self._run(lambda: self._encode(text, encoding), len(text))
        # The analyzer reads what the user wrote, not the template's frame around it.
        analysed = _written(chat)[:_MAX_ANALYSED_CHARACTERS]
        return TokenizedPrompt(prompt.tokens, analysed, text[-_END_CHARACTERS:])

    async def rendered(self, chat: Chat, options: EncodingOptions) -> str:
        """Return the text that the model's template makes of a chat. Raise `ApiError`."""
        template = self.template
        if isinstance(template, TemplateFailedError):
            raise misfit(str(template), "messages")
        chat = replace(chat, variables=_checked_variables(chat.variables, template))
        rendered = await self._render(template, chat, options, len(_written(chat)))
        return chat.with_beginning(rendered)

    def close(self) -> None:
        """End the threads and the template's process."""
        for worker in (self._short_texts, self._long_texts, self._templates):
            worker.close()
        if isinstance(self.template, ChatTemplate):
            self.template.close()

    async def _run(self, work: Callable[[], T], characters: int) -> T:
        short = characters <= _SHORT_CHARACTERS
        return await (self._short_texts if short else self._long_texts).run(work, characters)

    async def _render(
        self, template: ChatTemplate, chat: Chat, options: EncodingOptions, characters: int
    ) -> str:
        """Return the text of a chat. Raise `ApiError` 400 if the template fails or writes too much.

        In a plain chat, control tokens are marked as text.
        """

        def work() -> str:
            rendered = chat
            if options.plain:
                _check_roles(chat.messages)
                rendered = replace(
                    chat,
                    messages=self._encoder.mark_data(chat.messages),
                    variables=self._encoder.mark_data(chat.variables),
                    tools=self._encoder.mark_data(chat.tools),
                )
            return template.render(rendered, self._max_template_bytes)

        try:
            return await self._templates.run(work, characters)
        except TooMuchTextError as error:
            reason = f"the chat is longer: {error}"
            raise context_length_error(self._context_tokens, reason) from error
        except TemplateFailedError as error:
            message = f"the chat template refused the messages: {error}"
            raise misfit(message, "messages") from error

    def _encode(self, text: str, options: EncodingOptions) -> TokenizedPrompt:
        marked = self._encoder.mark(text) if options.plain else text
        tokens = self._encoder.encode(marked, options.special, self._kept(options.keep_last))
        return TokenizedPrompt(tokens, text[:_MAX_ANALYSED_CHARACTERS])

    def _kept(self, keep_last: int | None) -> int | None:
        """Return how many tokens of a prompt are kept, None for all. Raise `ApiError` 400."""
        if keep_last is None:
            return None
        kept = keep_last if keep_last > 0 else self._context_tokens + keep_last
        if 0 < kept <= self._context_tokens:
            return kept
        raise misfit(
            f"the context of {self._context_tokens} tokens leaves no room for that",
            "truncate_prompt_tokens",
        )

    def _check_ids(self, tokens: list[int]) -> TokenizedPrompt:
        if len(tokens) > self._context_tokens:
            raise context_length_error(self._context_tokens, f"the prompt has {len(tokens)}")
        self._encoder.check(tokens)
        return TokenizedPrompt(tokens, self._encoder.decode(tokens)[:_MAX_ANALYSED_CHARACTERS])


def _written(chat: Chat) -> str:
    """Return what was written in a chat."""
    return "\n".join(str(message["content"]) for message in chat.messages)


def _checked_variables(variables: Mapping[str, Any], template: ChatTemplate) -> dict[str, Any]:
    """Return the variables that the template reads. Raise `ApiError` 400 for unknown ones."""
    for name in variables:
        if name not in template.variables and name not in _IGNORED_VARIABLES:
            known = ", ".join(sorted(template.variables)) or "none"
            raise ApiError(
                400,
                f"chat_template_kwargs: '{name}' is not a variable that may be set for this "
                f"model's chat template; those are: {known}",
                f"chat_template_kwargs.{name}",
            )
    return {name: value for name, value in variables.items() if name in template.variables}


def _check_roles(messages: list[dict[str, Any]]) -> None:
    """Raise `ApiError` 400 for a role of which a template could make a control token."""
    for message in messages:
        if message["role"] not in _PLAIN_TEXT_ROLES:
            known = ", ".join(sorted(_PLAIN_TEXT_ROLES))
            raise misfit(f"with plain_text, a role is one of {known}", "messages")
