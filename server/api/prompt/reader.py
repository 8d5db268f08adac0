"""From the prompts of a request to tokens, beside the event loop and bounded in time and size."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from server.api.errors import ApiError
from server.api.prompt.chat_template import ChatTemplate, TemplateFailedError, TooMuchTextError
from server.api.prompt.encoder import PromptEncoder, too_long

_ANALYSED_CHARACTERS = 100_000
_SHORT = 2**15  # characters of a text that is soon tokenised
_LINE, _LINE_TEXT = 512, 2**25  # requests that wait for one thread, and their characters
_LEAST_TEXT, _MOST_TEXT = 2**20, 2**24  # bytes that a template may write
# Variables of well-known templates that clients set for any model.
_HARMLESS = {"enable_thinking", "thinking", "reasoning_effort"}
_ROLES = {"system", "developer", "user", "assistant", "tool"}

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A tokenised prompt and the text that the analyzer reads."""

    tokens: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Encoding:
    """How text becomes tokens: with the tokenizer's own tokens around it, and as plain text."""

    special: bool
    plain: bool


class _Lane:
    """A thread and those who wait for it."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._waiting = self._text = 0
        self._closed = False

    async def run(self, work: Callable[[], T], size: int) -> T:
        """Raises what `work`, on `size` characters, raises.

        Raises `ApiError` 503 if too much is waiting, or nothing is taken any more.
        """
        full = self._waiting >= _LINE or (self._waiting and self._text + size > _LINE_TEXT)
        if full or self._closed:
            reason = "the server is shutting down" if self._closed else "too many prompts wait"
            raise ApiError(503, reason, retry_after=1)
        self._waiting += 1
        self._text += size
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._waiting -= 1
            self._text -= size

    def close(self) -> None:
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)


class PromptReader:
    """Prepares prompts. Long texts wait for one thread and short ones for another.

    So do chats for the template: nobody's text is behind a slower kind of work.
    """

    def __init__(
        self, encoder: PromptEncoder, template: ChatTemplate | TemplateFailedError, longest: int
    ) -> None:
        self._encoder = encoder
        self._template = template
        self._longest = longest
        per_token = None if encoder.bound is None else encoder.bound.per_token
        self._most_bytes = (
            _MOST_TEXT if per_token is None else max(_LEAST_TEXT, longest * per_token)
        )
        self._short, self._long = _Lane("short-prompts"), _Lane("long-prompts")
        self._chats = _Lane("chats")

    async def texts(self, texts: list[str], how: Encoding) -> list[Prompt]:
        """Texts to tokens. Raises `ApiError`."""

        def work() -> list[Prompt]:
            return [self._encoded(text, how) for text in texts]

        return await self._run(work, sum(map(len, texts)))

    async def ids(self, prompts: list[list[int]]) -> list[Prompt]:
        """Token ids as they are. Raises `ApiError` for ids that the model does not have."""

        def work() -> list[Prompt]:
            return [self._checked(tokens) for tokens in prompts]

        return await self._run(work, sum(map(len, prompts)))

    async def chat(
        self,
        messages: list[dict[str, Any]],
        variables: Mapping[str, Any],
        how: Encoding,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> Prompt:
        """A chat to tokens, through the model's template. Raises `ApiError`."""
        template = self._template
        if isinstance(template, TemplateFailedError):
            raise ApiError(400, str(template), "messages")
        given = self._allowed(variables, template)
        said = "\n".join(str(message["content"]) for message in messages)

        def render() -> str:
            parts = (messages, given)
            if how.plain:
                _check_roles(messages)
                parts = self._encoder.marked_data(messages), self._encoder.marked_data(given)
            return template.render(
                *parts, add_generation_prompt, continue_final_message, self._most_bytes
            )

        try:
            text = await self._chats.run(render, len(said))
        except TooMuchTextError as error:
            raise too_long(self._longest, f"the chat is longer: {error}") from error
        except TemplateFailedError as error:
            message = f"the chat template refused the messages: {error}"
            raise ApiError(400, message, "messages") from error
        plain = Encoding(how.special, plain=False)  # what had to be marked is marked
        prompt = await self._run(lambda: self._encoded(text, plain), len(text))
        # The analyzer reads what the user said, not the template's frame around it.
        return Prompt(prompt.tokens, said[:_ANALYSED_CHARACTERS])

    def close(self) -> None:
        """End the threads and the template's process."""
        for lane in (self._short, self._long, self._chats):
            lane.close()
        if isinstance(self._template, ChatTemplate):
            self._template.close()

    async def _run(self, work: Callable[[], T], size: int) -> T:
        return await (self._short if size <= _SHORT else self._long).run(work, size)

    def _encoded(self, text: str, how: Encoding) -> Prompt:
        given = self._encoder.marked(text) if how.plain else text
        return Prompt(self._encoder.encode(given, how.special), text[:_ANALYSED_CHARACTERS])

    def _checked(self, tokens: list[int]) -> Prompt:
        if len(tokens) > self._longest:
            raise too_long(self._longest, f"the prompt has {len(tokens)}")
        self._encoder.check(tokens)
        return Prompt(tokens, self._encoder.decode(tokens)[:_ANALYSED_CHARACTERS])

    @staticmethod
    def _allowed(variables: Mapping[str, Any], template: ChatTemplate) -> dict[str, Any]:
        """The variables that the template reads. Raises `ApiError` for others."""
        for name in variables:
            if name not in template.reads and name not in _HARMLESS:
                known = ", ".join(sorted(template.reads)) or "none"
                raise ApiError(
                    400,
                    f"chat_template_kwargs: '{name}' is not a variable that may be set for this "
                    f"model's chat template; those are: {known}",
                    f"chat_template_kwargs.{name}",
                )
        return {name: value for name, value in variables.items() if name in template.reads}


def _check_roles(messages: list[dict[str, Any]]) -> None:
    """Raise `ApiError` for a role that a template could make a control token of."""
    for message in messages:
        if message["role"] not in _ROLES:
            known = ", ".join(sorted(_ROLES))
            raise ApiError(400, f"with plain_text, a role is one of {known}", "messages")
