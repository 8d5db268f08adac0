"""What a request says of tools becomes one answer: which may be called, and which must."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError

from server.api.errors import ApiError
from server.api.tools.bodies import MAX_TOOLS, Calls, ToolChoice, Tools
from server.api.tools.tool_use import tool_use

TOOLS = TypeAdapter(Tools)
CHOICE = TypeAdapter(ToolChoice | None)


def tool(name="add", **fields):
    return {"type": "function", "function": {"name": name, **fields}}


def named(name):
    return {"type": "function", "function": {"name": name}}


def allowed(mode, *names):
    tools = [named(name) for name in names]
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}


def use(tools, choice=None, parallel=None):
    return tool_use(TOOLS.validate_python(tools), CHOICE.validate_python(choice), parallel)


@pytest.mark.parametrize(
    ("choice", "names", "required", "parallel"),
    [
        (None, ["add", "now"], False, True),
        ("auto", ["add", "now"], False, True),
        ("required", ["add", "now"], True, True),
        (named("now"), ["now"], True, False),
        (allowed("auto", "now"), ["now"], False, True),
        (allowed("required", "now", "add"), ["now", "add"], True, True),
    ],
)
def test_the_choice_says_which_tools_may_and_must_be_called(choice, names, required, parallel):
    found = use([tool(), tool("now")], choice)
    assert list(found.functions) == names
    assert (found.required, found.parallel) == (required, parallel)
    assert not use([tool(), tool("now")], choice, False).parallel


@pytest.mark.parametrize(("tools", "choice"), [([], None), ([], "auto"), ([tool()], "none")])
def test_there_may_be_no_tool_to_call(tools, choice):
    assert use(tools, choice) is None


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([], "required", "needs tools"),
        ([], named("add"), "needs tools"),
        ([tool()], named("now"), "no tool 'now'"),
        ([tool()], allowed("auto", "now"), "no tool 'now'"),
        ([tool(), tool()], None, "two are called 'add'"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(tools, choice, message):
    with pytest.raises(ApiError, match=message) as raised:
        use(tools, choice)
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "tools",
    [
        [tool("")],
        [tool("a b")],
        [tool("a" * 129)],
        [tool("a\n")],
        [{"type": "web_search"}],
        [{"type": "function"}],
        [{"function": {"name": "add"}}],
        [tool(description="x" * 2**15)],
        [tool(parameters=[])],
        [tool(parameters={"type": "string"})],
        [tool(parameters={"description": "x" * 2**17})],
        [tool(f"t{at}") for at in range(MAX_TOOLS + 1)],
        "add",
    ],
)
def test_other_tools_are_refused(tools):
    with pytest.raises(ValidationError):
        TOOLS.validate_python(tools)


@pytest.mark.parametrize(
    "choice", ["any", {}, named("a b"), {"type": "x"}, 3, allowed("none", "a")]
)
def test_other_choices_are_refused(choice):
    with pytest.raises(ValidationError):
        CHOICE.validate_python(choice)


@pytest.mark.parametrize(
    "calls",
    [
        [{"function": {"name": "a", "arguments": {}}}],
        [{"id": "x" * 300, "function": {"name": "a"}}],
        [{"type": "custom", "function": {"name": "a"}}],
        [{"function": {"name": "a"}}] * 129,
    ],
)
def test_other_calls_in_messages_are_refused(calls):
    with pytest.raises(ValidationError):
        TypeAdapter(Calls).validate_python(calls)


def test_templates_get_tools_with_all_fields():
    (entry,) = use([tool(strict=True)]).for_template()
    assert entry == tool(description="", parameters={"type": "object", "properties": {}})
    assert json.dumps(entry)
