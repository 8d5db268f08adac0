"""The forward pass on a GPU: decode steps are recorded once and replayed as CUDA graphs.

Launching a small model's kernels one by one takes longer than the kernels run.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pruners.variant import VariantSpec
from server.engine.backends.base import Segment, check_rows, check_shallow
from server.engine.backends.pytorch.batched_step import BatchedStep
from server.engine.backends.pytorch.corrections import PyTorchCorrections
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.kv_maps import PyTorchMapsByDepth
from server.engine.backends.pytorch.weights import PyTorchWeights
from server.engine.cache.kv_cache import KVCache

if TYPE_CHECKING:
    from torch.cuda.graphs import _POOL_HANDLE

_MAX_GRAPHS = 48  # of a few MiB each
_MIN_LENGTH = 128  # cached tokens that a recorded step has room for

GraphKey = tuple[VariantSpec, int, int]
"""Variant, rows and cached tokens of a recorded step; both numbers are powers of two."""

RowInputs = tuple[int, int, int, int, int]
"""A row's token, its position, its slot, where its region starts and how much that holds."""


class GraphDecoder(PyTorchDecoder):
    """A PyTorch decoder in which decoding rows go in one recorded step for each variant.

    Prompts and shallow tokens are computed as ragged steps, and so are sequences whose queries are
    kept for their eviction, or whose sliding windows need the true positions after an eviction. On
    a CPU steps of the same shapes are computed without being recorded. The cache needs a spare
    slot, for the rows that fill a batch up to a power of two.
    """

    def __init__(
        self,
        weights: PyTorchWeights,
        cache: KVCache,
        corrections: PyTorchCorrections | None = None,
        maps: PyTorchMapsByDepth | None = None,
    ) -> None:
        super().__init__(weights, cache, corrections, maps)
        spare = cache.arena.capacity  # the slot behind the arena belongs to no sequence
        self._padding: RowInputs = (0, 0, spare, spare, 1)
        self._windowed = any(layer.window is not None for layer in weights.layers)
        self._recorded: OrderedDict[GraphKey, _RecordedStep] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if weights.device.type == "cuda" else None

    @torch.inference_mode()
    def forward(self, segments: list[Segment]) -> Tensor:
        """Return hidden states `[rows, hidden]` after the final norm; cache keys and values.

        Rows follow the tokens of the segments in order. Each segment's `cache` is advanced. Raises
        `IndexError` for a token or a position that the model does not have, and `ValueError` for
        shallow tokens of a depth without maps or among the outputs.
        """
        check_shallow(segments, self._maps)
        batches: dict[VariantSpec | None, list[int]] = {}
        for index, segment in enumerate(segments):
            variant = segment.variant if self._can_record(segment) else None
            batches.setdefault(variant, []).append(index)
        ends = list(accumulate(len(segment.tokens) for segment in segments))
        device, dtype = self.weights.device, self.weights.dtype
        hidden = torch.empty(ends[-1], self.weights.shape.hidden, dtype=dtype, device=device)
        for variant, members in batches.items():
            batch = [segments[index] for index in members]
            rows = [r for i in members for r in range(ends[i] - len(segments[i].tokens), ends[i])]
            part = super().forward(batch) if variant is None else self._decode(variant, batch)
            hidden.index_copy_(0, torch.tensor(rows, device=device), part)
        return hidden

    def _can_record(self, segment: Segment) -> bool:
        cache = segment.cache
        if len(segment.tokens) > 1 or cache.queries is not None or any(segment.shallow or ()):
            return False
        return cache.positions is None or not self._windowed

    def _decode(self, variant: VariantSpec, segments: list[Segment]) -> Tensor:
        """Return hidden states `[segments, hidden]` of segments of one token each."""
        rows: list[RowInputs] = []
        for segment in segments:
            cache = segment.cache
            (slot,) = cache.slots(1)
            rows.append((segment.tokens[0], cache.processed, slot, cache.start, cache.cached + 1))
            cache.advance(1)
        tokens, last_position = [row[0] for row in rows], max(row[1] for row in rows)
        check_rows(tokens, last_position, self.weights.shape.vocab, self.weights.rope)
        longest = max(row[-1] for row in rows)
        size = _next_power(len(rows))
        key = (variant, size, max(_MIN_LENGTH, _next_power(longest)))
        return self._step(key)(rows + [self._padding] * (size - len(rows)))[: len(rows)]

    def _step(self, key: GraphKey) -> "_RecordedStep":
        recorded = self._recorded.pop(key, None)
        if recorded is None:
            if len(self._recorded) == _MAX_GRAPHS:
                self._recorded.popitem(last=False)
            variant, rows, length = key
            step = BatchedStep(rows, length, variant, self.weights)
            step.inputs.copy_(torch.tensor([self._padding] * rows).T)

            def compute() -> Tensor:
                step.begin()
                return self.run(step)

            recorded = _RecordedStep(step.inputs, compute, self._pool)
        self._recorded[key] = recorded  # the latest last
        return recorded


class _RecordedStep:
    """Computes hidden states from `inputs`, int64 `[5, rows]`; with a `pool` by replaying a graph.

    `pool` is the memory that all graphs share.
    """

    def __init__(
        self, inputs: Tensor, compute: Callable[[], Tensor], pool: "_POOL_HANDLE | None"
    ) -> None:
        self._inputs = inputs
        self._compute = compute
        self._graph: torch.cuda.CUDAGraph | None = None
        if pool is None:
            return
        # Kernels and libraries are initialised by two runs on a side stream before the recording.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._output = compute()

    def __call__(self, rows: Sequence[RowInputs]) -> Tensor:
        """Return hidden states `[rows, hidden]`, valid until the next call of any recorded step."""
        self._inputs.copy_(torch.tensor(rows).T)
        if self._graph is None:
            return self._compute()
        self._graph.replay()
        return self._output


def _next_power(count: int) -> int:
    """Return the smallest power of two that is not less than `count`."""
    return 1 << (count - 1).bit_length()
