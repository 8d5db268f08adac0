"""What the server tells the worker. It imports nothing that takes long."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

LearningPrecision = Literal["fp32", "bf16"]
"""In what the worker computes."""


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """What to learn of: the model's name as `--model` has it, its name and its fingerprint.

    `target` is the artefact's folder, `server` the id of the server's process, `threads` how many
    threads compute (None: one for each core), `precision` that of the weights.
    """

    model: str
    name: str
    fingerprint: str
    target: str
    server: int
    threads: int | None = None
    precision: LearningPrecision = "fp32"

    def to_line(self) -> str:
        """Return the order as a line of JSON."""
        return json.dumps(asdict(self)) + "\n"
