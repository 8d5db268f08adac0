"""Which layers or sub-blocks to skip: a greedy, hence nested, choice by KL to the base."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel, Shape
from pruners.calibration.layer_probe import LayerForward, LayerProbe
from pruners.data.rows import make_batches
from pruners.evaluation.divergence import Tally, compare
from pruners.realization.mask import constant_output_hook
from pruners.support.progress import track
from pruners.variant import PARTS, Block, VariantSpec, base_spec

# Small batches, since all candidates read the first one; at least these read the last.
_BATCH_TOKENS = 512
_FINALISTS = 4
# After the first step, only the cuts that looked best when last tried are tried again.
_SHORTLIST = 16

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
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    count: int,
    biases: Mapping[Block, torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> DepthOrder:
    """Removes, `count` times, the layer without which the model stays closest to the base.

    The greedy elimination of SLEB (Song et al. 2024, arXiv 2402.09025) with KL(base || pruned)
    over the full vocabulary in place of perplexity. `biases` are added in the place of blocks that
    are gone. Raises `ValueError` if `count` would leave no layer.
    """
    if not 0 < count < len(located.layers):
        raise ValueError(f"cannot skip {count} of {len(located.layers)} layers")
    cuts = [tuple(Block(layer, part) for part in PARTS) for layer in range(len(located.layers))]
    removed, kl = _greedy(located, rows, cuts, len, 2 * count, biases or {}, "layer", progress)
    return DepthOrder(tuple(cut[0].layer for cut in removed), kl)


def greedy_blocks(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    parameters: int,
    biases: Mapping[Block, torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> BlockOrder:
    """Removes attention and MLP blocks, where KL rises least for a parameter saved.

    Until at least `parameters` of their matrices are gone. BlockPruner (Zhong et al. 2024, arXiv
    2406.10594) and LLM-Drop (He et al. 2024, arXiv 2406.15786), with KL(base || pruned) and what a
    block costs. Raises `ValueError` if that would leave no block.
    """
    shape = located.shape
    full = base_spec(shape).body_parameters(shape)
    if not 0 < parameters < full:
        raise ValueError(f"cannot skip blocks of {parameters} parameters out of {full}")
    blocks = [Block(layer, part) for layer in range(len(located.layers)) for part in PARTS]

    def size(cut: Cut) -> int:
        return full - block_spec(shape, cut).body_parameters(shape)

    cuts = [(block,) for block in blocks]
    removed, kl = _greedy(
        located, rows, cuts, size, parameters, biases or {}, "sub-block", progress
    )
    return BlockOrder(tuple(cut[0] for cut in removed), kl)


@torch.no_grad()
def _greedy(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    cuts: Sequence[Cut],
    size: Callable[[Cut], int],
    wanted: int,
    biases: Mapping[Block, torch.Tensor],
    what: str,
    progress: Progress | None,
) -> tuple[list[Cut], tuple[float, ...]]:
    """The cuts in the order they are made, the cheapest for its size first, and the KL after each.

    A candidate recomputes only what is behind it, from cached inputs; after each batch the worse
    half of the candidates retires (successive halving, Jamieson & Talwalkar 2016, arXiv
    1502.07943).
    """
    probes = [LayerProbe(located, batch) for batch in make_batches(rows, _BATCH_TOKENS)]
    remaining = list(cuts)
    price = dict.fromkeys(cuts, 0.0)  # rise of KL over size, when the cut was last tried
    removed: list[Cut] = []
    kl: list[float] = []
    while sum(size(cut) for cut in removed) < wanted:
        gone = {block for cut in removed for block in cut}
        tried = _SHORTLIST if removed else len(remaining)
        candidates = sorted(remaining, key=price.__getitem__)[:tried]
        tallies = {cut: Tally() for cut in candidates}
        for probe in track(probes, f"Choosing {what} {len(removed) + 1} to skip", progress):
            finals = [
                probe.final_hidden_from(
                    cut[0].layer, _skipping(located, probe, gone | set(cut), biases)
                )
                for cut in candidates
            ]
            scores = [tallies[cut] for cut in candidates]
            compare(located.head, probe.base, finals, probe.targets, scores)
            for cut in candidates:
                price[cut] = (tallies[cut].mean_kl - (kl[-1] if kl else 0.0)) / size(cut)
            candidates.sort(key=price.__getitem__)
            del candidates[max(_FINALISTS, len(candidates) // 2) :]
        best = candidates[0]
        kl.append(tallies[best].mean_kl)
        removed.append(best)
        remaining.remove(best)
        for probe in probes:
            probe.record_inputs(_skipping(located, probe, gone | set(best), biases))
    return removed, tuple(kl)


def _skipping(
    located: LocatedModel,
    probe: LayerProbe,
    gone: AbstractSet[Block],
    biases: Mapping[Block, torch.Tensor],
) -> LayerForward:
    """Computes layers without the blocks that are gone; a constant stands in for each."""

    def run(index: int, hidden: torch.Tensor) -> torch.Tensor:
        layer = located.layers[index]
        joins = {"attention": layer.attention_output, "mlp": layer.mlp_output}
        silent = [block for part in PARTS if (block := Block(index, part)) in gone]
        if len(silent) == len(PARTS):
            for block in silent:
                hidden = hidden + biases[block] if block in biases else hidden
            return hidden
        with ExitStack() as hooks:
            for block in silent:
                hook = constant_output_hook(biases.get(block))
                hooks.callback(joins[block.part].register_forward_hook(hook).remove)
            return probe.layer(index, hidden)

    return run
