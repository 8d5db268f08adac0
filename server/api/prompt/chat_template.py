"""A model's chat template, rendered in a separate process that is replaced when it ends."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.api.prompt.template_watchdog import Watched, watched
from server.api.prompt.template_worker import HAS_TIMER, MAX_MEMORY, MAX_SECONDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("template_worker.py")
_RESERVED_NAMES = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
}


class TemplateFailedError(ValueError):
    """The template does not take these messages, or any. The message is one line."""


class TooMuchTextError(TemplateFailedError):
    """The template wrote more than a prompt may hold."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What a chat template renders: messages, further variables, and how the text ends.

    With `add_generation_prompt` it ends with the start of the assistant's turn; with
    `continue_final_message` inside the last message. `tools` is what may be called. The answer
    begins with `beginning`, which is added to the text; where that has begun reasoning, whose marks
    are `ended_reasoning`, it ends there.
    """

    messages: list[dict[str, Any]]
    variables: Mapping[str, Any]
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    tools: list[dict[str, Any]] | None = None
    beginning: str = ""
    ended_reasoning: tuple[str, str] | None = None

    def with_beginning(self, text: str) -> str:
        """Return the rendered text with the beginning of the answer."""
        marks = self.ended_reasoning
        if marks is not None and text.rstrip().endswith(marks[0]):
            text += f"\n{marks[1]}\n\n"
        return text + self.beginning


class ChatTemplate:
    """A template of Jinja, which renders chats in another process, one at a time.

    `variables` are the names that a request may set. The constructor raises `TemplateFailedError`
    if the template cannot be compiled, or takes too long.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self.source = source
        self._special = dict(special_tokens)
        self._worker: subprocess.Popen[bytes] | None = None
        read = set(self._ask(None)["reads"])
        self.variables = frozenset(read - _RESERVED_NAMES - set(self._special))

    def render(self, chat: Chat, max_bytes: int) -> str:
        """Return the text of a chat. Raise `TemplateFailedError` or `TooMuchTextError`."""
        job = {
            "messages": chat.messages,
            "tools": chat.tools,
            "variables": {**self._special, **chat.variables},
            "add_generation_prompt": chat.add_generation_prompt,
            "continue_final_message": chat.continue_final_message,
            "max_bytes": max_bytes,
        }
        try:
            line = json.dumps(job, allow_nan=False, ensure_ascii=False)
        except ValueError as error:
            raise TemplateFailedError("a number in the messages is too large") from error
        reply = self._ask(line)
        if "too_long" in reply:
            raise TooMuchTextError(f"its text has more than {max_bytes} bytes")
        return str(reply["text"])

    def close(self) -> None:
        """End the process."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()

    def _ask(self, line: str | None) -> dict[str, Any]:
        """Return the worker's reply to a line, or to the template itself if `line` is None.

        Start the worker if there is none.
        """
        if self._worker is None:
            self._worker = _start()
            reply = self._exchange(json.dumps({"template": self.source}))
        if line is not None:
            reply = self._exchange(line)
        return reply

    def _exchange(self, line: str) -> dict[str, Any]:
        worker = self._worker
        assert worker is not None
        assert worker.stdin is not None
        assert worker.stdout is not None
        bounds = (
            nullcontext(Watched()) if HAS_TIMER else watched(worker.pid, MAX_SECONDS, MAX_MEMORY)
        )
        with bounds as found:
            try:
                worker.stdin.write(line.encode() + b"\n")
                worker.stdin.flush()
                answer = worker.stdout.readline()
            except OSError:  # a broken pipe
                answer = b""
        if not answer.endswith(b"\n"):
            self.close()
            if found.too_long or (HAS_TIMER and worker.returncode == -signal.SIGPROF):
                raise TemplateFailedError(f"it took longer than {MAX_SECONDS:g} s")
            if found.too_large:
                raise TemplateFailedError("it needs too much memory")
            raise TemplateFailedError("its process was ended by the system")
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise TemplateFailedError(str(reply["error"]))
        return reply


def open_template(tokenizer: "PreTrainedTokenizerBase") -> ChatTemplate | TemplateFailedError:
    """Return the tokenizer's chat template, or the error why it cannot be used.

    It is tried on one message. A template that fails on that is kept, as it may take others, and
    a warning is logged.
    """
    try:
        source = tokenizer.get_chat_template()
    except ValueError:
        return TemplateFailedError("this model has no chat template; use /v1/completions")
    try:
        template = ChatTemplate(source, tokenizer.special_tokens_map)
    except TemplateFailedError as error:
        log.warning(
            "chat is off, completions are served: the model's chat template fails: %s", error
        )
        return TemplateFailedError(f"this model's chat template cannot be used: {error}")
    try:
        template.render(Chat([{"role": "user", "content": "hi"}], {}), max_bytes=2**20)
    except TemplateFailedError as error:
        log.warning("the model's chat template fails on one message of a user: %s", error)
    return template


def _start() -> subprocess.Popen[bytes]:
    # Without the server's settings, so that no template sees the API key. In a session of its
    # own: an interrupt from the keyboard must not end it before the server's answers are done.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRIMTAB_")}
    try:
        return subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        reason = f"its process cannot be started: {error.strerror}"
        raise TemplateFailedError(reason) from error
