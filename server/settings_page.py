"""Writes the page of all settings: `python -m server.settings_page > docs/configuration.md`."""

import sys

from server.settings import (
    default_text,
    option_name,
    setting_description,
    setting_groups,
    variable_name,
)

_HEAD = """# Configuration

Each setting can be given in three ways. An option goes before a variable, and a variable before the
file.

| way | example |
|---|---|
| an option of `trimtab serve` | `trimtab serve --max-running 8` |
| an environment variable | `TRIMTAB_MAX_RUNNING=8 trimtab serve` |
| a configuration file in TOML | `max_running = 8` |

`trimtab serve --config trimtab.toml` reads the file, and so does `TRIMTAB_CONFIG=trimtab.toml`. The
file has no tables; its names are those of the variables, in lower case and without `TRIMTAB_`:

```toml
model = "SmolLM2-135M-Instruct"
max_running = 8
kv_budgets = [1024, 512]
allowed_hosts = ["models.example"]
speculate = true
```

A value that is empty, wrong or out of range ends the command with one line and exit code 2. So does
an unknown name in the file; an unknown variable is a warning. Relative paths start at the working
directory. A switch such as `--speculate` is turned off by `--no-speculate`, `TRIMTAB_SPECULATE=0`
or `speculate = false`. The commands that build, train and measure read none of these.

`TRIMTAB_CACHE` is the folder where models and packed weights are kept; without it `trimtab` in the
user's cache. `trimtab cache` lists it, and `trimtab cache clear` clears it.

This page is written by `python -m server.settings_page`.
"""


def settings_page() -> str:
    """Return the page in Markdown, with one table of settings for each group."""
    lines = [_HEAD]
    for title, names in setting_groups().items():
        lines += [f"## {title}\n", "| option | variable | default | meaning |", "|---|---|---|---|"]
        lines += [_row(name) for name in names]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(name: str) -> str:
    default = default_text(name)
    shown = f"`{default}`" if default else ""
    meaning = setting_description(name)
    return f"| `{option_name(name)}` | `{variable_name(name)}` | {shown} | {meaning} |"


if __name__ == "__main__":
    sys.stdout.write(settings_page())
