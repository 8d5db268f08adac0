"""A process that renders one chat template, within bounds on its memory and time.

A template is untrusted code: it can loop for ever or fill the memory. The sandbox of Jinja keeps
it from files and from Python's attributes; the separate process can be stopped whatever it does.
The file is run by its path and imports nothing of the server. It reads and writes lines of JSON:
the template first, then the chats. Filters and functions are those that `transformers` offers.
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

MAX_MEMORY = 512 * 2**20  # bytes of address space
MAX_SECONDS = 2.0  # of processor time for one chat
HAS_TIMER = hasattr(signal, "setitimer")  # if not, the parent bounds time and memory
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING = ("reasoning_content", "thinking", "reasoning")  # names of the same field


class _GenerationTag(Extension):
    """The `{% generation %}` tag, which marks the assistant's text for training; ignored here."""

    tags = {"generation"}  # noqa: RUF012, as jinja2 has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """Jinja's `namespace`, without names that begin with an underscore."""

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
    """Return the environment in which templates are compiled."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _raise
    sandbox.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    sandbox.globals["namespace"] = _Namespace
    return sandbox


def render(template: Template, source: str, chat: dict[str, Any]) -> str | None:
    """Return the text of a chat; None if it has more than `max_bytes`."""
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
            "tools": chat["tools"],
            "documents": None,
            "add_generation_prompt": chat["add_generation_prompt"],
        }
    ):
        size += len(part.encode())
        if size > chat["max_bytes"]:
            return None
        parts.append(part)
    text = "".join(parts)
    return text if continued is None else _cut_at_tag(text, continued)


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose reasoning, if it has any, has every name that templates read."""
    reasoning = next((message[name] for name in _REASONING if message.get(name) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _cut_at_tag(text: str, continued: str) -> str:
    """Return the rendered text up to the end of the message that is to be continued."""
    if continued.strip() not in text or _TAG.strip() not in text:
        raise TemplateError("the template changes the final message; it cannot be continued")
    at = text.rindex(_TAG.strip())
    # Where the tag lost its blank, the template strips the blanks around messages.
    return text[:at] if text[at : at + len(_TAG)] == _TAG else text[:at].rstrip()


def _describe(error: BaseException) -> str:
    """Return one line about an error; an error that the template raises itself as it is."""
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

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):  # not every system has such limits
        pass


def _set_timer(seconds: float) -> None:
    if HAS_TIMER:
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Reply to each line of standard input with one line on standard output."""
    _limit_memory()
    if HAS_TIMER:
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent may have ignored it
    sandbox = environment()
    template: Template | None = None
    source = ""
    for line in sys.stdin.buffer:
        job = json.loads(line)
        # When the time is over, the signal ends the process, whatever it is doing.
        _set_timer(MAX_SECONDS)
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
            reply = {"error": _describe(error)}
        _set_timer(0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
