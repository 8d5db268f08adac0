"""How long the parts of an answer took: the one place that metrics, logs and responses read."""

import time
from collections.abc import Sequence as Many
from dataclasses import dataclass

from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class AnswerTiming:
    """Times of an answer, or of all answers to one request, in seconds.

    None stands for what was not reached. `waited` is the time in the queue, `ttft` that from the
    arrival to the first token, `tpot` the mean time per token after it, `writing` the time from the
    first token to the last, and `total` the time from the arrival until now.
    """

    waited: float | None
    ttft: float | None
    tpot: float | None
    writing: float | None
    total: float

    @property
    def reading(self) -> float | None:
        """Return the time from the start to the first token, in which the prompt was read."""
        if self.waited is None or self.ttft is None:
            return None
        return self.ttft - self.waited

    @classmethod
    def of(cls, sequences: Many[Sequence]) -> "AnswerTiming":
        """Return the timing of answers that came together, as it is now.

        The first of them that starts, and the first token of any, count; `tpot` is a mean over all.
        """
        arrived = min(sequence.arrived for sequence in sequences)
        started = [s.started_at for s in sequences if s.started_at is not None]
        first = [s.first_token_at for s in sequences if s.first_token_at is not None]
        last = [s.last_token_at for s in sequences if s.last_token_at is not None]
        steps = sum(len(s.output) - 1 for s in sequences if s.output)
        spans = sum(
            s.last_token_at - s.first_token_at
            for s in sequences
            if s.first_token_at is not None and s.last_token_at is not None
        )
        return cls(
            waited=min(started) - arrived if started else None,
            ttft=min(first) - arrived if first else None,
            tpot=spans / steps if steps > 0 else None,
            writing=max(last) - min(first) if first and last else None,
            total=time.monotonic() - arrived,
        )

    def disclosure(self) -> dict[str, float]:
        """Return what was measured, in milliseconds, as responses tell it."""
        measured = {
            "measured_queue_ms": self.waited,
            "measured_reading_ms": self.reading,
            "measured_ttft_ms": self.ttft,
            "measured_tpot_ms": self.tpot,
            "measured_writing_ms": self.writing,
        }
        return {name: round(1e3 * s, 2) for name, s in measured.items() if s is not None}
