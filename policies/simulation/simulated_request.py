"""Requests in the simulated engine, and sums over those that wait."""

import math
from dataclasses import dataclass


@dataclass(slots=True)
class SimulatedRequest:
    """One request in the engine. Times are in seconds of the simulated clock, lengths in tokens.

    `index` is the request's number and `action` its variant's. `cached` is the largest size of its
    cache. `expected` is the predicted length of its answer, at most `output`, the true one.
    `reading` is the time to read its prompt over that in full.
    """

    index: int
    action: int
    arrived: float
    prompt: int
    output: int
    cached: int
    expected: float = math.inf
    reading: float = 1.0
    prompt_rate: float = 0.0  # seconds for each token of the prompt
    prompt_left: int = 0
    last_step: int = 0  # number of the step that writes its last token
    started: float = 0.0  # when its prompt began to be read
    first_token: float = 0.0

    def __lt__(self, other: "SimulatedRequest") -> bool:
        """Order by the last step, for the heap of requests that decode."""
        return self.last_step < other.last_step


@dataclass(slots=True)
class WaitingSums:
    """Sums over the requests that wait: by variant their number; tokens and seconds to read their
    prompts, and the expected tokens of their answers."""

    counts: list[int]
    tokens: int = 0
    seconds: float = 0.0
    expected: float = 0.0

    def add(self, request: SimulatedRequest, times: int) -> None:
        """Add a request, or remove it with `times` of -1."""
        self.counts[request.action] += times
        self.tokens += times * request.prompt
        self.seconds += times * request.prompt * request.prompt_rate
        self.expected += times * request.expected
