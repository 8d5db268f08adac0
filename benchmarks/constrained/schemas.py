"""JSON Schemas as clients send them, each with something to ask."""

import json
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

SCHEMAS: dict[str, tuple[str, Schema]] = {
    name: (entry["ask"], entry["schema"])
    for name, entry in json.loads(Path(__file__).with_suffix(".json").read_text()).items()
}
"""What to ask, and the schema of its answer, by a name. All but those with `free` are bounded."""
