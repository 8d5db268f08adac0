"""What the engine reports to the controller: its requests, and how long each step took."""

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache

from pruners.variant import VariantSpec

StepPart = tuple[VariantSpec, int, int]
"""The rows of one variant in a step: the variant, the tokens that are processed, and the cached
tokens that these attend to. Shallow tokens of prompts are rows of their own: their variant is the
`shallow_part` of the one that reads the rest."""


NO_CLIENT = "-"
"""Stands for all clients that have no key."""


@lru_cache(maxsize=4096)
def shallow_part(variant: VariantSpec, depth: int) -> VariantSpec:
    """Return what a shallow token runs through: the first `depth` layers of a variant."""
    above = (0,) * (len(variant.ffn) - depth)
    return VariantSpec(
        f"{variant.name}/{depth}", variant.kv_groups[:depth] + above, variant.ffn[:depth] + above
    )


@dataclass(frozen=True, slots=True)
class SequenceStatus:
    """One request in the engine. All counts are tokens.

    `prompt_left` are not read yet; `shallow_left` of these run through the first `depth` layers
    only. `output_most` is the answer's limit (`max_tokens`), and
    `output_left` what is left of it. `cached` are in the KV cache, which may come to hold
    `cache_limit`. `work` is the predicted time that it takes of a machine with full batches, in
    seconds, for the share of its `client`.
    """

    variant: VariantSpec
    running: bool
    prompt_left: int
    output_most: int
    output_left: int
    cached: int
    cache_limit: int
    shallow_left: int = 0
    depth: int = 0
    client: str = NO_CLIENT
    work: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """The requests in the engine, and its limits.

    `max_running` requests run at once, a step processes at most `step_tokens` tokens. Of the KV
    cache's `kv_capacity` tokens, `kv_used` are in use.
    """

    sequences: tuple[SequenceStatus, ...]
    max_running: int
    step_tokens: int
    kv_used: int
    kv_capacity: int

    @property
    def running(self) -> int:
        """Number of requests in the batch."""
        return sum(s.running for s in self.sequences)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self.sequences) - self.running

    def ahead_of(self, client: str) -> "EngineStatus":
        """Return the status without what a new request of a client would overtake in the queue.

        Clients are served in turn by work, so of each other client as much goes first as this one
        has waiting itself.
        """
        if all(s.client == client for s in self.sequences):
            return self
        own = sum(s.work for s in self.sequences if s.client == client and not s.running)
        before: dict[str, float] = defaultdict(float)
        ahead = []
        for sequence in self.sequences:
            other = sequence.client != client and not sequence.running
            if not other or before[sequence.client] <= own:
                ahead.append(sequence)
            if other:
                before[sequence.client] += sequence.work
        return replace(self, sequences=tuple(ahead))


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of the engine: its duration in seconds, its rows, and the tokens that it sampled."""

    seconds: float
    rows: tuple[StepPart, ...]
    sampled: int
