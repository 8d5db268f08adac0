"""How far a sequence is, as other threads see it."""

from typing import NamedTuple


class Progress(NamedTuple):
    """How far a sequence is, in tokens.

    `pending` are to be processed before the next token can be sampled; `started` says that the
    sequence has a cache, in which `cached` tokens are.
    """

    pending: int
    in_prompt: bool
    written: int
    cached: int
    started: bool
