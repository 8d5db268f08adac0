"""The schema of calls that must be takes whole calls of the tools, and nothing else."""

import jsonschema
import pytest

from server.api.tools.bodies import FunctionBody
from server.api.tools.call_schema import call_schema
from server.api.tools.tool_form import TOOL_FORMS
from server.api.tools.tool_use import ToolUse

ADD = FunctionBody(
    name="add",
    parameters={
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/number"}, "tree": {"$ref": "#/$defs/tree"}},
        "required": ["a"],
        "$defs": {
            "number": {"type": "number"},
            "tree": {
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/tree"}},
                "additionalProperties": False,
            },
        },
    },
)
NOW = FunctionBody(name="now")


def accepts(use, form, value):
    validator = jsonschema.Draft202012Validator(call_schema(use, TOOL_FORMS[form]))
    validator.check_schema(validator.schema)
    return validator.is_valid(value)


def call(name, arguments, key="arguments"):
    return {"name": name, key: arguments}


TREE = {"a": 1.5, "tree": {"left": {"left": {}}}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(TREE, True), ({}, False), ({"a": "1"}, False), ({"a": 1, "b": 2}, False),
     ({"a": 1, "tree": {"right": {}}}, False)],
)  # fmt: skip
def test_arguments_of_one_tool_are_its_own(arguments, expected):
    assert accepts(ToolUse({"add": ADD}, True), "hermes", arguments) == expected
    both = ToolUse({"now": NOW, "add": ADD}, True)
    assert accepts(both, "hermes", call("add", arguments)) == expected
    assert accepts(both, "mistral", [call("now", {}), call("add", arguments)]) == expected
    assert accepts(both, "llama3", call("add", arguments, "parameters")) == expected


def test_a_tool_without_parameters_gets_none():
    assert accepts(ToolUse({"now": NOW}, True), "hermes", {})
    assert not accepts(ToolUse({"now": NOW}, True), "hermes", {"a": 1})


@pytest.mark.parametrize("value", [[], {}, call("sub", {}), call("now", {"a": 1}), {"name": "now"}])
def test_other_calls_are_none(value):
    both = ToolUse({"now": NOW, "add": ADD}, True)
    for form in ("hermes", "json"):
        assert not accepts(both, form, value if value == [] else [value])
        assert not accepts(both, form, value)


def test_only_one_call_may_stand_alone():
    both = ToolUse({"now": NOW, "add": ADD}, True, parallel=False)
    assert accepts(both, "json", [call("now", {})])
    assert not accepts(both, "json", [call("now", {})] * 2)


def test_objects_within_objects_have_no_unnamed_members():
    point = {"type": "object", "properties": {"x": {"type": "integer"}}}
    nested = FunctionBody(
        name="draw",
        parameters={
            "properties": {
                "at": {"$ref": "#/$defs/point"},
                "path": {"type": "array", "items": point},
                "free": {"type": "object"},
                "own": {**point, "additionalProperties": True},
            },
            "$defs": {"point": point},
        },
    )
    use = ToolUse({"draw": nested}, True)
    more = {"x": 1, "y": 2}
    for name, value in {"at": more, "path": [more]}.items():
        assert not accepts(use, "json", {name: value})
    assert accepts(use, "json", {"at": {"x": 1}, "path": [{"x": 1}], "free": more, "own": more})


def test_schemas_that_combine_others_stay_open():
    open_one = FunctionBody(
        name="open",
        parameters={"allOf": [{"properties": {"a": {"type": "integer"}}, "required": ["a"]}]},
    )
    assert accepts(ToolUse({"open": open_one}, True), "json", {"a": 1})
