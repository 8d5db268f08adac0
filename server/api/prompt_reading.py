"""How prompts were read: what responses, metrics and logs say of it."""

from collections.abc import Iterable
from dataclasses import dataclass

from pruners.architecture import Shape
from pruners.reading.reader import FULL
from server.engine.reading_depth import FULL_DEPTH
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class PromptReading:
    """How the tokens of prompts were read: in full, shallow, or not, since they were cached.

    `reader` is the reader's name, `full` for none. `compute` are the multiply-adds of reading over
    those of the base for the same prompts; cached tokens cost nothing.
    """

    reader: str
    full: int
    shallow: int
    cached: int
    compute: float

    @classmethod
    def of(cls, sequences: Iterable[Sequence], shape: Shape) -> "PromptReading | None":
        """Return how the prompts of some sequences were read, all by one reader.

        None unless all of them have started. `shape` is the base's.
        """
        full = shallow = cached = 0
        work, name = 0.0, FULL
        for sequence in sequences:
            if sequence.started_at is None:
                return None
            reader, depths = sequence.request.reader, sequence.depths
            reused = min(sequence.reused, len(depths))
            in_full = depths.count(FULL_DEPTH, reused)
            read = len(depths) - reused
            full, shallow, cached = full + in_full, shallow + read - in_full, cached + reused
            name = FULL if reader is None else reader.name
            work += read if reader is None or not read else read * reader.cost(shape, read, in_full)
        prompts = full + shallow + cached
        return cls(name, full, shallow, cached, work / prompts)

    @property
    def tokens(self) -> dict[str, int]:
        """The numbers of tokens, by how they were read."""
        return {"full": self.full, "shallow": self.shallow, "cached": self.cached}
