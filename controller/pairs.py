"""Which smaller variants are worth offering together with a reader."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from policies import Action, Candidate
from policies.hull import concave_hull

READING_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of reading in the work of a request, from short questions to long documents."""


class WriterFigures(NamedTuple):
    """Of a variant: its work of reading and of writing over the base's, and its loss in nats."""

    reading: float
    writing: float
    loss: float


class ReaderFigures(NamedTuple):
    """Of a reader: its work over reading in full, and its loss in nats per token."""

    reading: float
    loss: float


def useful_pairs(
    writers: Mapping[str, WriterFigures], readers: Mapping[str, ReaderFigures]
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a variant and a reader that are on the concave hull of some request.

    Any other pair is worse than a mix of other choices whatever the lengths of prompt and answer,
    so that leaving it out costs nothing and makes decisions quicker. The base, which is one of the
    `writers`, goes with every reader anyway. Losses are taken to add up.
    """
    found: dict[tuple[str, str], None] = {}
    for share in READING_SHARES:
        for one in concave_hull(list(_candidates(share, writers, readers))):
            variant, reader = one.action.variant, one.action.reader
            if reader is not None and writers[variant] != _BASE:
                found[variant, reader] = None
    order = [(variant, reader) for variant in writers for reader in readers]
    return tuple(pair for pair in order if pair in found)


_BASE = WriterFigures(1.0, 1.0, 0.0)


def _candidates(
    share: float, writers: Mapping[str, WriterFigures], readers: Mapping[str, ReaderFigures]
) -> Iterator[Candidate]:
    every: Sequence[tuple[str | None, ReaderFigures]] = [
        (None, ReaderFigures(1.0, 0.0)),
        *readers.items(),
    ]
    for variant, writer in writers.items():
        for name, reader in every:
            cost = share * writer.reading * reader.reading + (1 - share) * writer.writing
            loss = writer.loss + reader.loss
            yield Candidate(Action(variant, None, name), loss, cost, 0.0, 0.0)
