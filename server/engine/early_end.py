"""Which sequences end before their answer is whole, and how."""

from server.engine.sequence import Delta, FinishReason, Sequence

DEADLINE = "deadline"
"""The stop reason of an answer whose time was over while it was written."""
_TOO_LATE = "the time for this request was over before its answer began"
_DISPLACED = "the queue is full, and other clients have fewer requests in it"


def early_end(sequence: Sequence, now: float) -> Delta | None:
    """Return the last delta of a sequence that ends now though it is not whole; None if it goes on.

    What was written when the time is over is an answer that was cut. `now` is by `time.monotonic`.
    """
    if sequence.cancelled:
        return Delta(finish_reason=FinishReason.ABORT)
    if sequence.displaced and sequence.started_at is None:
        return Delta(finish_reason=FinishReason.REFUSED, error=_DISPLACED)
    ends_at = sequence.request.terms.ends_at
    if ends_at is None or now < ends_at:
        return None
    if not sequence.output:
        return Delta(finish_reason=FinishReason.REFUSED, error=_TOO_LATE)
    text, stop = sequence.detokenizer.finish(), sequence.detokenizer.stopped_by
    if stop is not None:  # what was held back has it
        return Delta(text, finish_reason=FinishReason.STOP, stop_reason=stop)
    return Delta(text, finish_reason=FinishReason.LENGTH, stop_reason=DEADLINE)
