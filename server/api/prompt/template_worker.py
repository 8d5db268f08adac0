"""Renders one chat template, in a process of its own that has little memory and little time.

A template is foreign code: it can loop or fill the memory, be it by mistake. The sandbox keeps it
from files and attributes; only a process can be stopped whatever it does. Run by its path; it
imports nothing of the server. JSON lines come in and go out: the template first, then the chats.
The environment is that of `transformers`, so that a template finds here what it was written for.
"""

import json
import signal
import sys
from datetime import datetime
from typing import Any

from jinja2 import Template, meta, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MEMORY = 512 * 2**20  # bytes of address space
SECONDS = 2.0  # of processor time for one chat
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of one thing


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote, for training. Here it is only text."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    def __init__(*args: Any, **kwargs: object) -> None:  # noqa: ANN401, so that `namespace(self=...)` works
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: object) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no names that begin with _, as {name!r} does")


def _raise(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def environment() -> ImmutableSandboxedEnvironment:
    """What templates are compiled in."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    made.globals["namespace"] = _Namespace
    return made


def render(template: Template, source: str, chat: dict[str, Any]) -> str | None:
    """The text of a chat; None if it has more bytes than `most_bytes`."""
    messages = [_with_reasoning(message) for message in chat["messages"]]
    continued: str | None = None
    if chat["continue_final_message"]:
        continued = messages[-1].get("content")
        if not isinstance(continued, str) or "content" not in source:
            raise TemplateError("there is no final message that could be continued")
        messages[-1]["content"] = continued + _TAG
    size, parts = 0, []
    for part in template.generate(
        {
            **chat["variables"],
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": chat["add_generation_prompt"],
        }
    ):
        size += len(part.encode())
        if size > chat["most_bytes"]:
            return None
        parts.append(part)
    text = "".join(parts)
    return text if continued is None else _cut(text, continued)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    found = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if found is None:
        return message
    return {"thinking": found, **message, "reasoning_content": found}


def _cut(text: str, continued: str) -> str:
    """The rendered text up to the end of the message that is to be continued."""
    if continued.strip() not in text or _TAG.strip() not in text:
        raise TemplateError("the template changes the final message; it cannot be continued")
    at = text.rindex(_TAG.strip())
    # Where the tag lost its blank, the template strips messages.
    return text[:at] if text[at : at + len(_TAG)] == _TAG else text[:at].rstrip()


def _said(error: BaseException) -> str:
    """One line about an error. What templates raise themselves is shown as they wrote it."""
    text = " ".join(str(error).split())[:500]
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {text}"
    if isinstance(error, MemoryError):
        return "it needs too much memory"
    if isinstance(error, TemplateError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not known everywhere
        pass


def main() -> None:
    """Answer each line of standard input by one of standard output."""
    _limit_memory()
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it may come ignored
    sandbox = environment()
    template: Template | None = None
    source = ""
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # At its end the process is ended by the signal, whatever it is doing.
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            if template is None:
                source = job["template"]
                template = sandbox.from_string(source)
                names = meta.find_undeclared_variables(sandbox.parse(source))
                reply: dict[str, Any] = {"reads": sorted(names - set(sandbox.globals))}
            else:
                text = render(template, source, job)
                reply = {"too_long": True} if text is None else {"text": text}
        except Exception as error:
            reply = {"error": _said(error)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
