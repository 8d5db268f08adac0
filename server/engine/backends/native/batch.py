"""Fill in the structure of a step's batch."""

from array import array

import torch

from pruners.kv import RECENT_QUERIES, SINK_TOKENS
from server.engine.backends.base import Segment, check_rows, check_shallow
from server.engine.backends.native.model import NativeModel
from server.engine.backends.native.structures import BatchStruct

_SELECTION = {"page": 16, "recent": 16, "sinks": SINK_TOKENS}  # as the kernels select pages


class NativeBatch:
    """The structure of a step's rows and segments. It keeps alive what it points at."""

    def __init__(self, segments: list[Segment], model: NativeModel) -> None:
        """Fill in `struct` and advance each segment's cache.

        Raises `IndexError` for a token or a position that the model does not have, and `ValueError`
        for a variant that is wider than the base, for shallow tokens that cannot be, and for pages
        that the kernels cannot select.
        """
        shallow = check_shallow(segments, model.depths)
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
        if any(segment.cache.page_bounds is not None for segment in segments):
            self._add_page_bounds(segments)

    def _add_shallow(self, segments: list[Segment], model: NativeModel) -> None:
        marks, maps = array("B"), array("Q")
        for segment in segments:
            shallow = segment.shallow or [False] * len(segment.tokens)
            marks.extend(shallow)
            maps.append(model.maps(segment.depth) if any(shallow) else 0)
        self._arrays += [marks, maps]
        self.struct.shallow = marks.buffer_info()[0]
        self.struct.maps = maps.buffer_info()[0]

    def _add_page_bounds(self, segments: list[Segment]) -> None:
        bounds, strides, taken = array("Q"), array("i"), array("i")
        for segment in segments:
            pages = segment.cache.page_bounds
            if pages is None:
                for values in (bounds, strides, taken):
                    values.append(0)
                continue
            selection = pages.selection
            if any(getattr(selection, name) != value for name, value in _SELECTION.items()):
                raise ValueError(f"the kernels select pages by {_SELECTION}, not by {selection}")
            if len(segment.tokens) != 1 or pages.bounds.dtype != torch.bfloat16:
                raise ValueError("pages are selected for one token at a time, in a cache in bf16")
            pages.reserve(segment.cache.cached)
            bounds.append(pages.bounds.data_ptr())
            strides.append(pages.bounds.shape[2])
            taken.append(selection.budget // selection.page)
        self._arrays += [bounds, strides, taken]
        self.struct.page_bounds = bounds.buffer_info()[0]
        self.struct.page_bounds_stride = strides.buffer_info()[0]
        self.struct.pages_taken = taken.buffer_info()[0]
