"""Writes the page of all settings: `python -m server.settings_page > docs/configuration.md`."""

import sys

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from server.settings import GROUPS, PREFIX, Settings

_HEAD = """# Configuration

Each setting is an environment variable. The common ones are flags of `trimtab serve`, too
(`TRIMTAB_MAX_RUNNING` is `--max-running`); a flag wins. A variable that is empty, wrong or out of
range is an error of one line, an unknown one a warning. The commands that build, train and measure
read none of these. Made by `python -m server.settings_page`.

`TRIMTAB_CACHE` is the folder where models are kept; without it `trimtab` in the user's cache.
"""


def settings_page() -> str:
    """Return the page as Markdown: a table of name, default and meaning for each group."""
    titles = {first: title for title, first in GROUPS.items()}
    lines = [_HEAD]
    for name, field in Settings.model_fields.items():
        if name in titles:
            lines += [f"\n## {titles[name]}\n", "| variable | default | |", "|---|---|---|"]
        lines.append(f"| `{PREFIX}{name.upper()}` | {_default(field)} | {field.description} |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is None or value is PydanticUndefined or value == ():
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
