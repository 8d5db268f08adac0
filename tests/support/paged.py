"""Page-wise selection in PyTorch, by `PageSelection` itself, to compare kernels with."""

import torch
from torch import Tensor

from server.engine.backends.base import Segment
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.ragged_step import RaggedStep
from server.engine.backends.pytorch.step import LayerCache, RowSubset


class PagedStep(RaggedStep):
    """A step in which single tokens behind a prompt attend to the pages that are selected."""

    def attend(self, queries: Tensor, rows: RowSubset, cached: LayerCache) -> Tensor:
        mixed = super().attend(queries, rows, cached).view_as(queries)
        for span in rows.spans:
            cache = self._segments[span.segment].cache
            if cache.page_bounds is None:
                continue
            region = slice(cache.start, cache.start + cache.cached)
            keys, values = cached.keys[None, :, region], cached.values[None, :, region]
            q = queries[span.begin : span.end]  # [1, groups, heads of it, head_dim]
            seen = cache.selection.select(q.flatten(1, 2)[:, :, None], keys, cached.scale)
            if cached.window is not None:
                seen = seen & (torch.arange(cache.cached) > cache.cached - 1 - cached.window)
            scores = (cached.scale * q @ keys.transpose(2, 3)).masked_fill(~seen, -torch.inf)
            mixed[span.begin : span.end] = scores.softmax(-1) @ values
        return mixed.flatten(1)


class PagedDecoder(PyTorchDecoder):
    """PyTorch's decoder with page-wise selection."""

    @torch.inference_mode()
    def forward(self, segments: list[Segment]) -> Tensor:
        return self.run(PagedStep(segments, self.weights))
