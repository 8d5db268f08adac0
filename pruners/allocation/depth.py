"""Which layers or sub-blocks to skip: a greedy, hence nested, choice by KL to the base."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeAlias

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel, Shape
from pruners.calibration.layer_probe import LayerForward, LayerProbe
from pruners.data.rows import make_batches
from pruners.evaluation.divergence import DivergenceTotals, add_divergences
from pruners.realization.mask import constant_output_hook
from pruners.support.progress import track
from pruners.variant import PARTS, Block, VariantSpec, base_spec

# Small batches, since all candidates read the first one; at least `_FINALISTS` read the last.
_BATCH_TOKENS = 512
_FINALISTS = 4
# After the first step, only the cuts that looked best when last tried are tried again.
_SHORTLIST = 16

Cut: TypeAlias = tuple[Block, ...]
"""Blocks of one layer that are skipped together."""


@dataclass(frozen=True, slots=True)
class LayerSkipOrder:
    """Layers in the order they are skipped; `kl[i]` nats per token with the first i + 1 gone."""

    layers: tuple[int, ...]
    kl: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class BlockSkipOrder:
    """Blocks in the order they are skipped; `kl[i]` nats per token with the first i + 1 gone."""

    blocks: tuple[Block, ...]
    kl: tuple[float, ...]


def block_spec(shape: Shape, skipped: Sequence[Block]) -> VariantSpec:
    """Return the variant without the blocks `skipped`, named `blocks-N` after the N left."""
    gone = set(skipped)
    layers = range(shape.layers)
    return VariantSpec(
        f"blocks-{2 * shape.layers - len(gone)}",
        tuple(0 if (layer, "attention") in gone else shape.kv_groups for layer in layers),
        tuple(0 if (layer, "mlp") in gone else shape.ffn for layer in layers),
    )


def order_layers_to_skip(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    count: int,
    biases: Mapping[Block, torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> LayerSkipOrder:
    """Choose `count` layers to skip, one at a time, each with the least KL to the base.

    This is the greedy elimination of SLEB (Song et al. 2024, arXiv 2402.09025) with
    KL(base || pruned) over the full vocabulary in place of perplexity. `rows` are 1-D token ids.
    `biases[block]`, `[hidden]`, is added to the residual stream in the place of a skipped block.
    Raises `ValueError` if `count` would leave no layer.
    """
    if not 0 < count < len(located.layers):
        raise ValueError(f"cannot skip {count} of {len(located.layers)} layers")
    cuts = [tuple(Block(layer, part) for part in PARTS) for layer in range(len(located.layers))]
    elimination = _GreedyElimination(located, _probes(located, rows), biases or {}, progress)
    removed, kl = elimination.run(dict.fromkeys(cuts, 1), count, "layer")
    return LayerSkipOrder(tuple(cut[0].layer for cut in removed), kl)


def order_blocks_to_skip(
    located: LocatedModel,
    rows: Sequence[torch.Tensor],
    parameters: int,
    biases: Mapping[Block, torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> BlockSkipOrder:
    """Choose attention and MLP blocks to skip until `parameters` matrix parameters are gone.

    Each step takes the block with the least rise of KL(base || pruned) per parameter, a variation
    of BlockPruner (Zhong et al. 2024, arXiv 2406.10594) and LLM-Drop (He et al. 2024, arXiv
    2406.15786). `rows` are 1-D token ids. `biases[block]`, `[hidden]`, is added to the residual
    stream in the place of a skipped block. Raises `ValueError` if that would leave no block.
    """
    shape = located.shape
    full = base_spec(shape).body_parameters(shape)
    if not 0 < parameters < full:
        raise ValueError(f"cannot skip blocks of {parameters} parameters out of {full}")
    layers = range(len(located.layers))
    cuts: list[Cut] = [(Block(layer, part),) for layer in layers for part in PARTS]
    sizes = {cut: full - block_spec(shape, cut).body_parameters(shape) for cut in cuts}
    elimination = _GreedyElimination(located, _probes(located, rows), biases or {}, progress)
    removed, kl = elimination.run(sizes, parameters, "block")
    return BlockSkipOrder(tuple(cut[0] for cut in removed), kl)


def _probes(located: LocatedModel, rows: Sequence[torch.Tensor]) -> list[LayerProbe]:
    return [LayerProbe(located, batch) for batch in make_batches(rows, _BATCH_TOKENS)]


@dataclass(frozen=True, slots=True)
class _GreedyElimination:
    """Removes cuts one at a time, and measures candidates on `probes`."""

    located: LocatedModel
    probes: Sequence[LayerProbe]
    biases: Mapping[Block, torch.Tensor]
    progress: Progress | None

    def run(
        self, sizes: Mapping[Cut, int], wanted: int, what: str
    ) -> tuple[list[Cut], tuple[float, ...]]:
        """Return cuts of at least `wanted` size in the order they are made, and the KL after each.

        `sizes` holds every possible cut; the next one is that with the least rise of KL over its
        size.
        """
        remaining = list(sizes)
        price = dict.fromkeys(sizes, 0.0)  # rise of KL over size, when the cut was last tried
        removed: list[Cut] = []
        kl: list[float] = []
        while sum(sizes[cut] for cut in removed) < wanted:
            gone = {block for cut in removed for block in cut}
            tried = _SHORTLIST if removed else len(remaining)
            candidates = sorted(remaining, key=price.__getitem__)[:tried]
            label = f"Choosing {what} {len(removed) + 1} to skip"
            before = kl[-1] if kl else 0.0
            totals = {cut: DivergenceTotals() for cut in candidates}
            for probe in track(self.probes, label, self.progress):
                self._measure(probe, gone, {cut: totals[cut] for cut in candidates})
                for cut in candidates:
                    price[cut] = (totals[cut].mean_kl - before) / sizes[cut]
                # Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943): after each
                # batch the worse half of the candidates is dropped.
                candidates.sort(key=price.__getitem__)
                del candidates[max(_FINALISTS, len(candidates) // 2) :]
            best = candidates[0]
            kl.append(totals[best].mean_kl)
            removed.append(best)
            remaining.remove(best)
            for probe in self.probes:
                probe.record_inputs(self._layers_without(gone | set(best), probe))
        return removed, tuple(kl)

    def _measure(
        self, probe: LayerProbe, gone: AbstractSet[Block], totals: Mapping[Cut, DivergenceTotals]
    ) -> None:
        """Add one batch's divergences to the totals of each candidate, beside what is gone.

        A candidate recomputes the layers from its cut on; those before are the same.
        """
        finals = [
            probe.final_hidden_from(cut[0].layer, self._layers_without(gone | set(cut), probe))
            for cut in totals
        ]
        add_divergences(self.located.head, probe.base, finals, probe.targets, list(totals.values()))

    def _layers_without(self, gone: AbstractSet[Block], probe: LayerProbe) -> LayerForward:
        """Return how layers are computed when the blocks in `gone` give their bias, or zero."""

        def run(index: int, hidden: torch.Tensor) -> torch.Tensor:
            layer = self.located.layers[index]
            joins = {"attention": layer.attention_output, "mlp": layer.mlp_output}
            skipped = [block for part in PARTS if (block := Block(index, part)) in gone]
            if len(skipped) == len(PARTS):
                for block in skipped:
                    bias = self.biases.get(block)
                    if bias is not None:
                        hidden = hidden + layer.residual_scale * bias.to(hidden)
                return hidden
            with ExitStack() as hooks:
                for block in skipped:
                    hook = constant_output_hook(self.biases.get(block))
                    hooks.callback(joins[block.part].register_forward_hook(hook).remove)
                return probe.layer(index, hidden)

        return run
