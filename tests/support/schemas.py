"""The JSON Schemas of the benchmark of constrained answers."""

import json
from pathlib import Path

import jsonschema

_FILE = Path(__file__).parents[2] / "benchmarks/constrained/schemas.json"
SCHEMAS = {
    name: (entry["ask"], entry["schema"])
    for name, entry in json.loads(_FILE.read_text()).items()
    if "free" not in name
}
"""What to ask, and the schema of its answer, by a name. Their answers cannot grow for ever."""


def check(text: str, schema: object) -> None:
    """Raise an error unless a text is JSON that a schema allows, formats included."""
    jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
