"""What the engine tells the controller: its load, and what each step took."""

from dataclasses import dataclass

from pruners.variant import VariantSpec


@dataclass(frozen=True, slots=True)
class SequenceStatus:
    """What one request in the engine still costs, in tokens."""

    variant: VariantSpec
    running: bool
    prompt_left: int
    output_most: int
    output_left: int
    cached: int
    cache_limit: int  # tokens its cache may come to hold


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine is busy with now. KV figures in tokens."""

    sequences: tuple[SequenceStatus, ...]
    max_running: int
    step_tokens: int
    kv_used: int
    kv_capacity: int

    @property
    def running(self) -> int:
        return sum(s.running for s in self.sequences)

    @property
    def waiting(self) -> int:
        return len(self.sequences) - self.running


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What one step processed: by variant, tokens and the cached ones that these read."""

    seconds: float
    rows: tuple[tuple[VariantSpec, int, int], ...]
    sampled: int
