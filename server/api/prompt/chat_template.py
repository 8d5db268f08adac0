"""A model's chat template, rendered by a process of its own that is replaced when it ends."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from server.api.prompt.template_worker import SECONDS

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("template_worker.py")
_NOT_A_VARIABLE = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
}


class TemplateFailedError(ValueError):
    """A template that does not take these messages, or any. One line."""


class TooMuchTextError(TemplateFailedError):
    """What a template wrote is longer than any prompt."""


class ChatTemplate:
    """Renders chats, one at a time. `reads` are the variables that a request may set.

    Raises `TemplateFailedError` if the template cannot be compiled, or never ends.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self._source = source
        self._special = dict(special_tokens)
        self._worker: subprocess.Popen[bytes] | None = None
        named = set(self._ask(None)["reads"])
        self.reads = frozenset(named - _NOT_A_VARIABLE - set(self._special))

    def render(
        self,
        messages: list[dict[str, Any]],
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final_message: bool,
        most_bytes: int,
    ) -> str:
        """The text of a chat. Raises `TemplateFailedError` or `TooMuchTextError`."""
        job = {
            "messages": messages,
            "variables": {**self._special, **variables},
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "most_bytes": most_bytes,
        }
        try:
            line = json.dumps(job, allow_nan=False, ensure_ascii=False)
        except ValueError as error:
            raise TemplateFailedError("a number in the messages is too large") from error
        reply = self._ask(line)
        if "too_long" in reply:
            raise TooMuchTextError(f"its text has more than {most_bytes} bytes")
        return str(reply["text"])

    def close(self) -> None:
        """End the process."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()
            worker.wait()

    def _ask(self, line: str | None) -> dict[str, Any]:
        """The worker's answer to a line; to the template itself if there is none."""
        if self._worker is None:
            self._worker = _start()
            reply = self._exchange(json.dumps({"template": self._source}))
        if line is not None:
            reply = self._exchange(line)
        return reply

    def _exchange(self, line: str) -> dict[str, Any]:
        worker = self._worker
        assert worker is not None
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            worker.stdin.write(line.encode() + b"\n")
            worker.stdin.flush()
            answer = worker.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if not answer.endswith(b"\n"):
            self.close()
            if worker.returncode == -signal.SIGPROF:
                raise TemplateFailedError(f"it took longer than {SECONDS:g} s")
            raise TemplateFailedError("its process was ended by the system")
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise TemplateFailedError(str(reply["error"]))
        return reply


def open_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | TemplateFailedError:
    """The tokenizer's template, tried on one message; what is wrong if it cannot be used.

    A template that fails on that message is kept, as it may take others; a warning says so.
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
        template.render([{"role": "user", "content": "hi"}], {}, True, False, 2**20)
    except TemplateFailedError as error:
        log.warning("the model's chat template fails on one message of a user: %s", error)
    return template


def _start() -> subprocess.Popen[bytes]:
    # Without our settings: an API key is none of a template's business. In a session of its own:
    # an interrupt from the keyboard is for the server, which goes on until its answers are done.
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
