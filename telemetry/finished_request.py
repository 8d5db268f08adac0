"""What the metrics are told of a request that ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """One answer that ended, however it did, or a request that was refused.

    Lengths are in tokens, times in seconds. A time is None if there was none: no first token, no
    second one, or a request that was refused. `reader` is the name of what read the prompt, `full`
    for no reader; `read` counts its tokens by how they were read: `full`, `shallow` or `cached`.
    `waited`, `reading` and `writing` are the parts of `duration`. `cached` tokens of the prompt
    came from the prefix cache. In `drafts` rounds `drafted` tokens were guessed, of which
    `accepted` were right. `max_tokens` is what the request asked for. With the last answer of a
    request come the number of its answers to a prompt, `choices`, and the tokens of the `longest`.
    """

    variant: str
    outcome: str
    prompt_tokens: int
    output_tokens: int
    ttft: float | None = None
    tpot: float | None = None
    duration: float | None = None
    waited: float | None = None
    reading: float | None = None
    writing: float | None = None
    reader: str = "full"
    read: Mapping[str, int] = field(default_factory=dict)
    cached: int = 0
    drafts: int = 0
    drafted: int = 0
    accepted: int = 0
    max_tokens: int = 0
    choices: int | None = None
    longest: int | None = None
