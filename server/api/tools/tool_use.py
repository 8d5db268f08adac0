"""Which tools an answer may or must call."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.api.errors import misfit
from server.api.tools.bodies import AllowedTools, ChosenTool, FunctionBody, ToolBody, ToolChoice


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that an answer may call, by name; `required`: it calls one of them.

    With `parallel` it may call several.
    """

    functions: Mapping[str, FunctionBody]
    required: bool = False
    parallel: bool = True

    def for_template(self) -> list[dict[str, Any]]:
        """Return the tools as chat templates expect them."""
        return [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "description": function.description or "",
                    "parameters": parameters(function),
                },
            }
            for name, function in self.functions.items()
        ]


def parameters(function: FunctionBody) -> dict[str, Any]:
    """Return the schema of a function's arguments; without one, that of no arguments."""
    return {"type": "object", "properties": {}, **(function.parameters or {})}


def tool_use(
    tools: list[ToolBody] | None, choice: ToolChoice | None, parallel: bool | None
) -> ToolUse | None:
    """Return how an answer may use tools; None if there are none, or none may be called.

    Raise `ApiError` 400 for a choice that does not fit the tools.
    """
    functions = _by_name(tools or [])
    if not functions and choice not in (None, "none", "auto"):
        raise misfit("tool_choice needs tools", "tool_choice")
    if not functions or choice == "none":
        return None
    required = choice == "required"
    chosen: list[ChosenTool] = []
    if isinstance(choice, ChosenTool):
        required, chosen = True, [choice]
    elif isinstance(choice, AllowedTools):
        required, chosen = choice.allowed_tools.mode == "required", choice.allowed_tools.tools
    if chosen:
        functions = {one.function.name: _known(functions, one) for one in chosen}
    several = parallel is not False and not isinstance(choice, ChosenTool)
    return ToolUse(functions, required, several)


def _by_name(tools: list[ToolBody]) -> dict[str, FunctionBody]:
    functions: dict[str, FunctionBody] = {}
    for tool in tools:
        if tool.function.name in functions:
            raise misfit(f"tools: two are called '{tool.function.name}'", "tools")
        functions[tool.function.name] = tool.function
    return functions


def _known(functions: Mapping[str, FunctionBody], chosen: ChosenTool) -> FunctionBody:
    name = chosen.function.name
    if name not in functions:
        raise misfit(f"tool_choice: no tool '{name}' in tools", "tool_choice")
    return functions[name]
