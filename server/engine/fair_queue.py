"""The sequences that wait, each client's in a line of its own, served in turn by predicted work.

Deficit round robin (Shreedhar and Varghese, 1995), with seconds of predicted work in the place of
bytes: a client whose turn it is may start work until its credit is used up, and the rest of the
credit stays for its next turn. So clients that wait all the time get equal work done, however many
requests they send, and nobody waits for more than one turn of each other client.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

from server.engine.sequence import Sequence


class _Line:
    """The waiting sequences of one client, and the seconds of work that it may still start."""

    def __init__(self) -> None:
        self.waiting: deque[Sequence] = deque()
        self.credit = 0.0

    @property
    def next_work(self) -> float:
        """Return the predicted work of the first sequence."""
        return self.waiting[0].request.terms.work


class FairQueue:
    """Iterates over all sequences: those that were preempted first, then client by client.

    Owned by one thread. With one client alone the order is that of the arrivals.
    """

    def __init__(self) -> None:
        self._preempted: deque[Sequence] = deque()
        self._lines: OrderedDict[str, _Line] = OrderedDict()  # by client, in the order of turns
        self._turn: str | None = None  # the client that has its credit for this turn

    def __len__(self) -> int:
        return len(self._preempted) + sum(len(line.waiting) for line in self._lines.values())

    def __iter__(self) -> Iterator[Sequence]:
        yield from self._preempted
        for line in self._lines.values():
            yield from line.waiting

    def add(self, sequence: Sequence) -> None:
        """Put a sequence behind the others of its client."""
        line = self._lines.setdefault(sequence.request.terms.client, _Line())
        line.waiting.append(sequence)

    def put_back(self, sequence: Sequence) -> None:
        """Put a sequence that has been running before all others; its work was counted already."""
        self._preempted.appendleft(sequence)

    def first(self) -> Sequence:
        """Return the sequence that is to run next, and stays so until it is taken out.

        Raises `IndexError` if none waits.
        """
        if self._preempted:
            return self._preempted[0]
        if not self._lines:
            raise IndexError("nobody waits")
        while True:
            client, line = next(iter(self._lines.items()))
            if client != self._turn:  # its turn begins
                self._turn = client
                line.credit += max(other.next_work for other in self._lines.values())
            if line.credit >= line.next_work:
                return line.waiting[0]
            self._lines.move_to_end(client)
            self._turn = None

    def take(self) -> Sequence:
        """Take out the sequence that is to run next. Raises `IndexError` if none waits."""
        sequence = self.first()
        if self._preempted:
            return self._preempted.popleft()
        line = self._lines[sequence.request.terms.client]
        line.credit -= line.next_work
        self._drop(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, without a charge; it need not be there."""
        if sequence in self._preempted:
            self._preempted.remove(sequence)
        else:
            self._drop(sequence)

    def _drop(self, sequence: Sequence) -> None:
        """Take a sequence out of its line. A client with nothing to do saves up no credit."""
        client = sequence.request.terms.client
        line = self._lines.get(client)
        if line is not None and sequence in line.waiting:
            line.waiting.remove(sequence)
            if not line.waiting:
                del self._lines[client]
                if self._turn == client:
                    self._turn = None
