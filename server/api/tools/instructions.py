"""What a model is told of tools where its chat template knows none."""

import json

from server.api.tools.tool_form import ToolForm, WrittenCall
from server.api.tools.tool_use import ToolUse

_TEXT = """You can call tools. Each line between <tools> and </tools> describes one as JSON:
<tools>
{tools}
</tools>

{when}, write the call in this form and nothing else:
{example}"""
_ANSWER = "\n\nIf no tool helps, answer in plain words."


def instructions(use: ToolUse, form: ToolForm) -> str:
    """Return the text that describes the tools and how to call them."""
    tools = [json.dumps(tool["function"], ensure_ascii=False) for tool in use.for_template()]
    call = WrittenCall("NAME", '{"PARAMETER": "VALUE"}')
    when = "Call a tool. To call it" if use.required else "To call a tool"
    text = _TEXT.format(tools="\n".join(tools), when=when, example=form.write([call]))
    return text if use.required else text + _ANSWER
