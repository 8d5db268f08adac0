"""Which layers or sub-blocks to skip: a greedy, hence nested, choice by KL to the base."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import Decoder, Shape
from pruners.divergence import Tally, compare
from pruners.progress import tracked
from pruners.replay import replay
from pruners.rows import Batch, batches
from pruners.variant import VariantSpec

# Small batches, since all candidates read the first one; at least these read the last.
_BATCH_TOKENS = 512
_FINALISTS = 4
# After the first step, only the cuts that looked best when last tried are tried again.
_SHORTLIST = 16

Part: TypeAlias = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")


class Block(NamedTuple):
    """One sub-block of one layer."""

    layer: int
    part: Part


Cut: TypeAlias = tuple[Block, ...]
"""Blocks of one layer that go together."""


@dataclass(frozen=True, slots=True)
class DepthOrder:
    """Layers in the order they are removed; `kl[i]` nats per token with the first i+1 gone."""

    layers: tuple[int, ...]
    kl: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BlockOrder:
    """Sub-blocks in the order they are removed; `kl[i]` nats per token with the first i+1 gone."""

    blocks: tuple[Block, ...]
    kl: tuple[float, ...]


def block_spec(shape: Shape, skipped: Sequence[Block]) -> VariantSpec:
    """Sub-blocks skipped; the name counts those left of two a layer."""
    gone = set(skipped)
    layers = range(shape.layers)
    return VariantSpec(
        f"blocks-{2 * shape.layers - len(gone)}",
        tuple(0 if (layer, "attention") in gone else shape.kv_groups for layer in layers),
        tuple(0 if (layer, "mlp") in gone else shape.ffn for layer in layers),
    )


def greedy_layers(
    decoder: Decoder, rows: Sequence[torch.Tensor], count: int, progress: Progress | None = None
) -> DepthOrder:
    """Removes, `count` times, the layer without which the model stays closest to the base.

    The greedy elimination of SLEB (Song et al. 2024, arXiv 2402.09025) with KL(base || pruned)
    over the full vocabulary in place of perplexity. Raises `ValueError` if `count` would leave no
    layer.
    """
    if not 0 < count < len(decoder.layers):
        raise ValueError(f"cannot skip {count} of {len(decoder.layers)} layers")
    cuts = [tuple(Block(layer, part) for part in PARTS) for layer in range(len(decoder.layers))]
    removed, kl = _greedy(decoder, rows, cuts, count, "layer", progress)
    return DepthOrder(tuple(cut[0].layer for cut in removed), kl)


def greedy_blocks(
    decoder: Decoder, rows: Sequence[torch.Tensor], count: int, progress: Progress | None = None
) -> BlockOrder:
    """Removes, `count` times, the attention or MLP block that the model misses least.

    BlockPruner (Zhong et al. 2024, arXiv 2406.10594) and LLM-Drop (He et al. 2024, arXiv
    2406.15786), with KL(base || pruned). Raises `ValueError` if `count` would leave no block.
    """
    blocks = [Block(layer, part) for layer in range(len(decoder.layers)) for part in PARTS]
    if not 0 < count < len(blocks):
        raise ValueError(f"cannot skip {count} of {len(blocks)} sub-blocks")
    cuts = [(block,) for block in blocks]
    removed, kl = _greedy(decoder, rows, cuts, count, "sub-block", progress)
    return BlockOrder(tuple(cut[0] for cut in removed), kl)


@torch.no_grad()
def _greedy(
    decoder: Decoder,
    rows: Sequence[torch.Tensor],
    cuts: Sequence[Cut],
    count: int,
    what: str,
    progress: Progress | None,
) -> tuple[list[Cut], tuple[float, ...]]:
    """The cuts in the order they are made, and the KL after each.

    A candidate recomputes only what is behind it, from cached inputs; after each batch the worse
    half of the candidates retires (successive halving, Jamieson & Talwalkar 2016, arXiv
    1502.07943).
    """
    runs = [_Run(decoder, batch) for batch in batches(rows, _BATCH_TOKENS)]
    remaining = list(cuts)
    rise = dict.fromkeys(cuts, 0.0)  # of KL, when the cut was last tried
    removed: list[Cut] = []
    kl: list[float] = []
    for step in range(1, count + 1):
        gone = {block for cut in removed for block in cut}
        tried = len(remaining) if step == 1 else _SHORTLIST
        candidates = sorted(remaining, key=rise.__getitem__)[:tried]
        tallies = {cut: Tally() for cut in candidates}
        for run in tracked(runs, f"Choosing {what} {step} of {count} to skip", progress):
            finals = [run.final(gone, cut) for cut in candidates]
            scores = [tallies[cut] for cut in candidates]
            compare(decoder.head, run.base, finals, run.targets, scores)
            for cut in candidates:
                rise[cut] = tallies[cut].mean_kl - (kl[-1] if kl else 0.0)
            candidates.sort(key=rise.__getitem__)
            del candidates[max(_FINALISTS, len(candidates) // 2) :]
        best = candidates[0]
        kl.append(tallies[best].mean_kl)
        removed.append(best)
        remaining.remove(best)
        if step < count:
            for run in runs:
                run.remember(gone | set(best))
    return removed, tuple(kl)


class _Run:
    """One batch, the hidden state in front of each layer kept, and what the base makes of it."""

    def __init__(self, decoder: Decoder, batch: Batch) -> None:
        self._decoder = decoder
        self._replay = replay(decoder, batch)
        self._scored = batch.scored()
        self._inputs: list[torch.Tensor] = []
        self.targets = batch.targets(self._scored)
        self.base = self._finish(self.remember(set()))

    def remember(self, gone: set[Block]) -> torch.Tensor:
        """Recomputes the inputs of all layers; returns the output of the last."""
        self._inputs = []
        hidden = self._replay.hidden
        for layer in range(len(self._decoder.layers)):
            self._inputs.append(hidden)
            hidden = self._layer(layer, hidden, gone)
        return hidden

    def final(self, gone: set[Block], cut: Cut) -> torch.Tensor:
        """Final hidden states `[scored positions, hidden]` without `gone` and `cut`."""
        first = cut[0].layer
        hidden = self._inputs[first]
        for layer in range(first, len(self._decoder.layers)):
            hidden = self._layer(layer, hidden, gone | set(cut))
        return self._finish(hidden)

    def _layer(self, index: int, hidden: torch.Tensor, gone: set[Block]) -> torch.Tensor:
        layer = self._decoder.layers[index]
        joins = {"attention": layer.attention.o, "mlp": layer.mlp.down}
        silent = [linear for part, linear in joins.items() if (index, part) in gone]
        if len(silent) == len(PARTS):
            return hidden
        with ExitStack() as hooks:
            for linear in silent:
                hooks.callback(linear.register_forward_hook(_zeros).remove)
            return self._replay.layer(self._decoder, index, hidden)

    def _finish(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._decoder.final_norm(hidden[self._scored.to(hidden.device)])


def _zeros(module: nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(output)
