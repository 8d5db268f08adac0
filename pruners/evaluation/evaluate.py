"""Teacher-forced quality of variants against the base, on text that they were not built on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.artefact.table import Quality
from pruners.calibration.layer_replay import final_hidden
from pruners.data.rows import TokenBatch, describe_rows, make_batches
from pruners.evaluation.divergence import DivergenceTotals, add_divergences
from pruners.realization.mask import apply_mask
from pruners.realization.variant_set import VariantSet
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track

VariantForward: TypeAlias = Callable[[TokenBatch], torch.Tensor]
"""Runs a variant on a batch and returns the input of its head, `[rows, length, hidden]`."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality of each variant over the same `tokens` predictions, and the base's perplexity."""

    tokens: int
    base_perplexity: float
    quality: dict[str, Quality]

    def describe(self, rows: Sequence[torch.Tensor], source: str) -> dict[str, Any]:
        """Return what was measured on, as `Table.evaluation` says it."""
        return {
            **describe_rows(rows, source),
            "window": max(map(len, rows)),
            "predictions": self.tokens,
            "base_perplexity": self.base_perplexity,
        }


def masked_variants(located: LocatedModel, variants: VariantSet) -> dict[str, VariantForward]:
    """Return each variant as a mask of the model, with its corrections, by name."""
    return {
        spec.name: variant_forward(
            located,
            partial(apply_mask, located, spec, variants.order, variants.corrections_of(spec)),
        )
        for spec in variants.specs
    }


def variant_forward(
    located: LocatedModel, variant: Callable[[], AbstractContextManager[None]]
) -> VariantForward:
    """Return a forward pass of the model inside the context `variant()`, such as `mask`."""

    def forward(batch: TokenBatch) -> torch.Tensor:
        with variant():
            return final_hidden(located, batch)

    return forward


@torch.no_grad()
def evaluate(
    located: LocatedModel,
    variants: Mapping[str, VariantForward],
    rows: Sequence[torch.Tensor],
    prompt: int = 0,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Evaluation:
    """Compare every next-token prediction of the variants with the base's, on the same rows.

    `rows` are 1-D token ids, ragged. Each batch runs once through the base for all variants. With
    `prompt`, only predictions behind the first `prompt` tokens of a row count, as for a shortened
    KV cache, which changes nothing before. With a checkpoint, an interrupted call goes on behind
    the last batch it finished. Raises `ValueError` if no row is longer than `prompt` + 1.
    """
    key = f"quality behind {prompt} of {' '.join(variants)}"
    noted = checkpoint.load(key) if checkpoint is not None else None
    totals = [DivergenceTotals(**sums) for sums in noted["tallies"]] if noted else []
    totals = totals or [DivergenceTotals() for _ in ("base", *variants)]
    done = noted["batches"] if noted else 0
    waiting = list(make_batches(rows))[done:]
    for number, batch in enumerate(track(waiting, "Measuring quality", progress), done + 1):
        scored = batch.scored_positions(after=prompt)
        base, *finals = (
            _at_positions(forward(batch), scored)
            for forward in (lambda batch: final_hidden(located, batch), *variants.values())
        )
        targets = batch.targets(scored).to(base.device)
        add_divergences(located.head, base, [base, *finals], targets, totals)
        if checkpoint is not None:
            checkpoint.save(key, {"batches": number, "tallies": [asdict(t) for t in totals]})
    if totals[0].tokens == 0:
        raise ValueError(f"nothing to measure: no row is longer than {prompt + 1} tokens")
    return Evaluation(
        tokens=totals[0].tokens,
        base_perplexity=totals[0].perplexity,
        quality={
            name: Quality(total.mean_kl, total.agreement, total.perplexity)
            for name, total in zip(variants, totals[1:], strict=True)
        },
    )


def _at_positions(hidden: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    """Take `[rows, length, hidden]` to `[positions, hidden]` where `scored` is true."""
    return hidden[scored.to(hidden.device)]
