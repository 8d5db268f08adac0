"""Computes which tokens the constrained answers of a step may take, while the decoder runs."""

from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from server.engine.scheduler import ScheduledTokens
from server.engine.sequence import Sequence

Masks = dict[Sequence, Tensor]
"""Which tokens may come next, by sequence (see `TokenConstraint.masks`)."""


class MaskWorker:
    """A thread beside the engine's, which begins with the first constrained answer.

    Until its result is taken, nobody else may use the constraints of these answers.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "masks")

    def begin(self, scheduled: list[ScheduledTokens]) -> "Future[Masks]":
        """Return what will have the masks of a step's constrained answers that get a token."""
        wanted = [
            (item.sequence, item.sequence.request.constraint, item.drafts)
            for item in scheduled
            if item.sequence.request.constraint is not None and item.gets_token
        ]
        if not wanted:
            nothing: Future[Masks] = Future()
            nothing.set_result({})
            return nothing
        return self._thread.submit(
            lambda: {sequence: one.masks(drafts) for sequence, one, drafts in wanted}
        )
