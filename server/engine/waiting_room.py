"""How much may wait: the bounds of the queue, and who gives way to whom when it is full."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from controller.engine_status import NO_CLIENT
from server.engine.admission import InvalidRequestError
from server.engine.sequence import Sequence


class QueueFullError(RuntimeError):
    """Too many requests or tokens wait already; try again later."""


@dataclass(slots=True, eq=False)
class QueuePlace:
    """Room for a request whose prompts are still being made: it counts as if it waited.

    `tokens` is an estimate. The place counts until it is `given_up`.
    """

    requests: int
    tokens: int
    client: str = NO_CLIENT
    work: float = 0.0
    given_up: bool = False

    def give_up(self) -> None:
        """Let others have the room, since the request itself waits now, or has failed."""
        self.given_up = True


@dataclass(slots=True)
class WaitingRoom:
    """The bounds of the queue. Not for more than one thread at a time.

    At most `most` answers wait, with `most_tokens` tokens to be read together, beyond those for
    which the engine has a free row of its batch of `rows`.
    """

    most: int
    most_tokens: int
    rows: int
    _places: list[QueuePlace] = field(default_factory=list)

    def check_fits(self, requests: int, tokens: int) -> None:
        """Raise `InvalidRequestError` for answers that could not even wait if they were alone."""
        if requests > self.most + self.rows:
            raise InvalidRequestError(
                f"{requests} answers in one call: at most {self.most + self.rows} can run and wait"
            )
        if requests > 1 and tokens > self.most_tokens:
            raise InvalidRequestError(
                f"the prompts of all answers have {tokens} tokens together: at most "
                f"{self.most_tokens} may wait; ask for fewer in one call"
            )

    def keep(self, place: QueuePlace, waiting: Iterable[Sequence], running: int) -> None:
        """Keep a place for a request. Raises `QueueFullError` if there is none."""
        self.make_room(place, waiting, running)
        self._places.append(place)

    def make_room(
        self, new: QueuePlace, waiting: Iterable[Sequence], running: int
    ) -> list[Sequence]:
        """Return the sequences that give way to a new request, mostly none.

        Those of the client with the most work in the queue do, the newest first, if it has more
        than the new request's client would have. `waiting` are in the order of their arrivals,
        beside `running` others. Raises `QueueFullError`, and then nothing gives way.
        """
        self._places = [place for place in self._places if not place.given_up]
        here = [s for s in waiting if not s.cancelled and not s.displaced]
        work: dict[str, float] = defaultdict(float)
        for place in self._places:
            work[place.client] += place.work
        for sequence in here:
            work[sequence.request.terms.client] += sequence.request.terms.work
        leaving: list[Sequence] = []
        while (reason := self._why_full(new, here, running)) is not None:
            client = max(work, key=lambda name: work[name], default=new.client)
            own = [s for s in here if s.request.terms.client == client and s.started_at is None]
            if client == new.client or not own or work[client] <= work[new.client] + new.work:
                raise QueueFullError(reason)
            work[client] -= own[-1].request.terms.work
            here.remove(own[-1])
            leaving.append(own[-1])
        return leaving

    def _why_full(self, new: QueuePlace, here: list[Sequence], running: int) -> str | None:
        """Return why there is no room for a new request beside those `here`; None if there is.

        If nobody waits, one prompt of any length may.
        """
        requests = len(here) + sum(place.requests for place in self._places)
        if requests + new.requests - max(0, self.rows - running) > self.most:
            return f"{requests} requests are waiting, the limit is reached"
        tokens = sum(s.progress.pending for s in here) + sum(p.tokens for p in self._places)
        if requests and tokens + new.tokens > self.most_tokens:
            return f"{tokens} tokens are waiting to be read, the limit is near"
        return None
