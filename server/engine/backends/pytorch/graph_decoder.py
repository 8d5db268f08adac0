"""The forward pass on a GPU: decode steps are recorded once and replayed as CUDA graphs.

Launching a small model's kernels one by one takes longer than they run.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.pytorch.batched_step import BatchedStep
from server.engine.backends.pytorch.corrections import OwnParts
from server.engine.backends.pytorch.decoder import Decoder
from server.engine.backends.pytorch.weights import BaseWeights
from server.engine.cache.kv_cache import KVCache
from server.engine.segment import Segment, check_rows

if TYPE_CHECKING:
    from torch.cuda.graphs import _POOL_HANDLE

_MOST = 48  # graphs kept, of a few MiB each
_SHORTEST = 128  # cached tokens

Shape = tuple[VariantSpec, int, int]
"""Variant, rows and cached tokens of a recorded step; both numbers are powers of two."""

Inputs = tuple[int, int, int, int, int]
"""A row's token, its position, its slot, where its region starts and how much that holds."""


class GraphDecoder(Decoder):
    """What `Decoder` does. Rows that decode go in one recorded step for each variant.

    Prompts go the ragged way, and so do sequences whose queries are kept for their eviction or
    whose windows need the positions of what was left. On a CPU steps of the same shapes are
    computed without being recorded. The cache needs a spare slot, for rows that fill a batch up.
    """

    def __init__(self, weights: BaseWeights, cache: KVCache, own: OwnParts | None = None) -> None:
        super().__init__(weights, cache, own)
        spare = cache.arena.capacity  # the first slot of no sequence
        self._filling: Inputs = (0, 0, spare, spare, 1)
        self._windowed = any(layer.window is not None for layer in weights.layers)
        self._recorded: OrderedDict[Shape, _Recorded] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if weights.device.type == "cuda" else None

    @torch.inference_mode()
    def forward(self, segments: list[Segment]) -> Tensor:
        """As `Decoder.forward`."""
        batches: dict[VariantSpec | None, list[int]] = {}
        for index, segment in enumerate(segments):
            batches.setdefault(segment.variant if self._fits(segment) else None, []).append(index)
        ends = list(accumulate(len(segment.tokens) for segment in segments))
        device, dtype = self.weights.device, self.weights.dtype
        hidden = torch.empty(ends[-1], self.weights.shape.hidden, dtype=dtype, device=device)
        for variant, members in batches.items():
            chosen = [segments[index] for index in members]
            rows = [r for i in members for r in range(ends[i] - len(segments[i].tokens), ends[i])]
            found = super().forward(chosen) if variant is None else self._decoded(variant, chosen)
            hidden.index_copy_(0, torch.tensor(rows, device=device), found)
        return hidden

    def _fits(self, segment: Segment) -> bool:
        cache = segment.cache
        if len(segment.tokens) > 1 or cache.queries is not None:
            return False
        return cache.positions is None or not self._windowed

    def _decoded(self, variant: VariantSpec, segments: list[Segment]) -> Tensor:
        rows: list[Inputs] = []
        for segment in segments:
            cache = segment.cache
            (slot,) = cache.slots(1)
            rows.append((segment.tokens[0], cache.seen, slot, cache.start, cache.held + 1))
            cache.advance(1)
        tokens, furthest = [row[0] for row in rows], max(row[1] for row in rows)
        check_rows(tokens, furthest, self.weights.shape.vocab, self.weights.rope)
        longest = max(row[-1] for row in rows)
        shape = (variant, _power(len(rows)), max(_SHORTEST, _power(longest)))
        filling = [self._filling] * (shape[1] - len(rows))
        return self._step(shape)(rows + filling)[: len(rows)]

    def _step(self, shape: Shape) -> "_Recorded":
        found = self._recorded.pop(shape, None)
        if found is None:
            if len(self._recorded) == _MOST:
                self._recorded.popitem(last=False)
            variant, rows, length = shape
            step = BatchedStep(rows, length, variant, self.weights)
            step.inputs.copy_(torch.tensor([self._filling] * rows).T)

            def compute() -> Tensor:
                step.begin()
                return self.run(step)

            found = _Recorded(step.inputs, compute, self._pool)
        self._recorded[shape] = found  # the latest last
        return found


class _Recorded:
    """Computes something from `inputs`, `[5, rows]`; with a pool of memory, by replaying it."""

    def __init__(
        self, inputs: Tensor, compute: Callable[[], Tensor], pool: "_POOL_HANDLE | None"
    ) -> None:
        self._inputs = inputs
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        if pool is None:
            return
        # Kernels and libraries settle before they are recorded, beside what is under way.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = compute()

    def __call__(self, rows: Sequence[Inputs]) -> Tensor:
        """The result for these inputs, valid until the next call of any recorded step."""
        self._inputs.copy_(torch.tensor(rows).T)
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._output


def _power(count: int) -> int:
    """The power of two that is no less."""
    return 1 << (count - 1).bit_length()
