"""How families of models write tool calls."""

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """A call as it stands in a conversation; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolForm:
    """How a family writes calls.

    `marks` are pairs of what stands before and behind calls; the first is the usual one. With
    `bare` a line that begins with JSON may be a call, too, and without marks that is the usual way.
    `in_list`: one value is a list of all calls; otherwise each call is a value of its own. `named`:
    a call may be `name[ARGS]{...}`. `arguments` is the key under which a call has them.
    `short_ids`: the ids of calls are nine letters and digits.
    """

    name: str
    marks: tuple[tuple[str, str], ...] = ()
    bare: bool = False
    in_list: bool = False
    named: bool = False
    arguments: str = "arguments"
    short_ids: bool = False

    @property
    def around(self) -> tuple[str, str]:
        """What usually stands before and behind a value, with line breaks around a single call."""
        if self.bare:
            return "", ""
        before, behind = self.marks[0]
        return (before, behind) if self.in_list else (f"{before}\n", f"\n{behind}")

    def before_arguments(self, name: str) -> str:
        """Return what stands before the arguments of a call."""
        opening = "[" if self.in_list else ""
        return f'{self.around[0]}{opening}{{"name": {json.dumps(name)}, "{self.arguments}": '

    def write(self, calls: Sequence[WrittenCall]) -> str:
        """Return calls as the model would have written them."""
        values = [
            f'{{"name": {json.dumps(call.name)}, "{self.arguments}": {call.arguments or "{}"}}}'
            for call in calls
        ]
        if self.in_list:
            values = [f"[{', '.join(values)}]"]
        before, behind = self.around
        return "\n".join(before + value + behind for value in values)


_TAGS = ("<tool_call>", "</tool_call>")
_FORMS = (
    ToolForm("hermes", (_TAGS,)),
    ToolForm("smollm", (_TAGS,), in_list=True),
    ToolForm("llama3", (("<|python_tag|>", ""),), bare=True, arguments="parameters"),
    ToolForm("mistral", (("[TOOL_CALLS]", ""),), in_list=True, named=True, short_ids=True),
    ToolForm("granite", (("<|tool_call|>", ""), _TAGS), in_list=True),
    ToolForm("phi", (("<|tool_call|>", "<|/tool_call|>"),), in_list=True),
    ToolForm("json", (_TAGS, ("```json\n", "```"), ("```\n", "```")), bare=True, in_list=True),
)
TOOL_FORMS = {form.name: form for form in _FORMS}
"""The ways to write calls, by name."""

# What stands in a chat template of each family, in the order in which it is looked for.
_TRACES = (
    ("[TOOL_CALLS]", "mistral"),
    ("<|/tool_call|>", "phi"),
    ("<|/tool|>", "phi"),
    ("<|tool_call|>", "granite"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3"),
    ("Environment: ipython", "llama3"),
    ("named SmolLM", "smollm"),
)


def form_of_template(template: str | None) -> ToolForm:
    """Return how the model with this chat template writes calls; generic JSON where it is open."""
    text = template or ""
    name = next((name for trace, name in _TRACES if trace in text), "json")
    return TOOL_FORMS[name]
