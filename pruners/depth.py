"""Which layers to skip: a greedy, hence nested, choice by KL to the base."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.progress import Progress

from pruners.architecture import Decoder
from pruners.divergence import Tally, compare
from pruners.progress import tracked
from pruners.replay import replay
from pruners.rows import Batch, batches

# Small batches, since all candidates read the first one; at least these read the last.
_BATCH_TOKENS = 512
_FINALISTS = 4


@dataclass(frozen=True, slots=True)
class DepthOrder:
    """Layers in the order they are removed; `kl[i]` nats per token with the first i+1 gone."""

    layers: tuple[int, ...]
    kl: tuple[float, ...]


@torch.no_grad()
def greedy_layers(
    decoder: Decoder, rows: Sequence[torch.Tensor], count: int, progress: Progress | None = None
) -> DepthOrder:
    """Removes, `count` times, the layer without which the model stays closest to the base.

    The greedy elimination of SLEB (Song et al. 2024, arXiv 2402.09025) with KL(base || pruned)
    over the full vocabulary in place of perplexity. A candidate recomputes only the layers behind
    it, from cached inputs; after each batch the worse half of the candidates retires (successive
    halving, Jamieson & Talwalkar 2016, arXiv 1502.07943). Raises `ValueError` if `count` would
    leave no layer.
    """
    if not 0 < count < len(decoder.layers):
        raise ValueError(f"cannot skip {count} of {len(decoder.layers)} layers")
    runs = [_Run(decoder, batch) for batch in batches(rows, _BATCH_TOKENS)]
    kept = list(range(len(decoder.layers)))
    removed: list[int] = []
    kl: list[float] = []
    for step in range(1, count + 1):
        tallies = {layer: Tally() for layer in kept}
        candidates = list(kept)
        for run in tracked(runs, f"Choosing layer {step} of {count} to skip", progress):
            finals = [run.final(kept, without=layer) for layer in candidates]
            scores = [tallies[layer] for layer in candidates]
            compare(decoder.head, run.base, finals, run.targets, scores)
            candidates.sort(key=lambda layer: tallies[layer].kl)
            del candidates[max(_FINALISTS, len(candidates) // 2) :]
        best = candidates[0]
        kl.append(tallies[best].mean_kl)
        removed.append(best)
        kept.remove(best)
        if step < count:
            for run in runs:
                run.remember(kept)
    return DepthOrder(tuple(removed), tuple(kl))


class _Run:
    """One batch, the hidden state in front of each layer kept, and what the base makes of it."""

    def __init__(self, decoder: Decoder, batch: Batch) -> None:
        self._decoder = decoder
        self._replay = replay(decoder, batch)
        self._scored = batch.scored()
        self._inputs: dict[int, torch.Tensor] = {}
        self.targets = batch.targets(self._scored)
        every = list(range(len(decoder.layers)))
        self.remember(every)
        self.base = self._finish(every, self._replay.hidden)

    def remember(self, kept: Sequence[int]) -> None:
        """Recomputes the inputs of the layers that are left."""
        hidden = self._replay.hidden
        for layer in kept:
            self._inputs[layer] = hidden
            hidden = self._replay.layer(self._decoder, layer, hidden)

    def final(self, kept: Sequence[int], without: int) -> torch.Tensor:
        """Final hidden states `[scored positions, hidden]` of `kept` less one layer."""
        return self._finish([layer for layer in kept if layer > without], self._inputs[without])

    def _finish(self, layers: Sequence[int], hidden: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            hidden = self._replay.layer(self._decoder, layer, hidden)
        return self._decoder.final_norm(hidden[self._scored.to(hidden.device)])
