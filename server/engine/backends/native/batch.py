"""Fill in the structure of a step's batch."""

import ctypes
from array import array

from pruners.kv import RECENT_QUERIES
from server.engine.backends.base import Segment, check_rows, check_shallow
from server.engine.backends.native.model import NativeModel
from server.engine.backends.native.structures import BatchStruct


class NativeBatch:
    """The structure of a step's rows and segments. It keeps alive what it points at."""

    def __init__(self, segments: list[Segment], model: NativeModel) -> None:
        """Fill in `struct` and advance each segment's cache.

        Raises `IndexError` for a token or a position that the model does not have, and `ValueError`
        for a variant that is wider than the base, and for shallow tokens that cannot be.
        """
        shallow = check_shallow(segments, model.maps)
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        first, starts, lengths, outputs = [0], [], [], []
        row_positions, queries, strides = ([0] * len(segments) for _ in range(3))
        for index, segment in enumerate(segments):
            cache, count = segment.cache, len(segment.tokens)
            tokens += segment.tokens
            positions += range(cache.processed, cache.processed + count)
            slots += cache.slots(count)
            cache.advance(count)
            first.append(first[-1] + count)
            starts.append(cache.start)
            lengths.append(cache.cached)
            outputs.append(count if segment.outputs is None else segment.outputs)
            if cache.positions is not None:
                row_positions[index] = cache.positions.data_ptr()
                strides[index] = cache.positions.shape[1]
            if cache.queries is not None:
                queries[index] = cache.queries.data_ptr()
        check_rows(tokens, max(positions), model.weights.shape.vocab, model.weights.rope)
        variants = [model.variant(segment.variant) for segment in segments]
        self._arrays = [  # in the structure's order
            *(array("i", values) for values in (tokens, positions, slots, first, outputs)),
            array("Q", variants),
            *(array("i", values) for values in (starts, lengths)),
            array("Q", row_positions),
            array("i", strides),
            array("Q", queries),
        ]
        addresses = [values.buffer_info()[0] for values in self._arrays]
        self.struct = BatchStruct(len(tokens), len(segments), *addresses, RECENT_QUERIES)
        if shallow:
            self._add_shallow(segments, model)

    def _add_shallow(self, segments: list[Segment], model: NativeModel) -> None:
        marks, maps = array("B"), array("Q")
        for segment in segments:
            shallow = segment.shallow or [False] * len(segment.tokens)
            marks.extend(shallow)
            maps.append(ctypes.addressof(model.maps[segment.depth]) if any(shallow) else 0)
        self._arrays += [marks, maps]
        self.struct.shallow = marks.buffer_info()[0]
        self.struct.maps = maps.buffer_info()[0]
