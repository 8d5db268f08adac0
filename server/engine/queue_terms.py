"""On what terms a request waits: whose it is, what it takes, and until when it may go on."""

from dataclasses import dataclass

from controller.engine_status import NO_CLIENT


@dataclass(frozen=True, slots=True)
class QueueTerms:
    """What the queue knows of one answer.

    `client` has a share of the engine (see `FairQueue`). `work` is the predicted time that the
    answer takes of a machine with full batches, in seconds; its ratio to that of others counts.
    `ends_at` is when the answer ends, whatever is written by then, by `time.monotonic`; None:
    never.
    """

    client: str = NO_CLIENT
    work: float = 1.0
    ends_at: float | None = None


NO_TERMS = QueueTerms()
"""Those of a request that has no client, and may take any time."""
