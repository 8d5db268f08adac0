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
from pruners.correction import Correction
from pruners.data.rows import TokenBatch, describe_rows, make_batches
from pruners.evaluation.divergence import Tally, compare
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import track
from pruners.variant import Block, VariantSpec

Reader: TypeAlias = Callable[[TokenBatch], torch.Tensor]
"""Gives what a variant hands to its head, `[rows, length, hidden]`."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality of each variant over the same `tokens` predictions, and the base's perplexity."""

    tokens: int
    base_perplexity: float
    quality: dict[str, Quality]

    def about(self, rows: Sequence[torch.Tensor], source: str) -> dict[str, Any]:
        """On what it was measured, as a table says it."""
        return {
            **describe_rows(rows, source),
            "window": max(map(len, rows)),
            "predictions": self.tokens,
            "base_perplexity": self.base_perplexity,
        }


def masked(
    located: LocatedModel,
    specs: Sequence[VariantSpec],
    order: Order,
    corrections: Mapping[str, Mapping[Block, Correction]],
) -> dict[str, Reader]:
    """Variants as masks of the model, with their corrections, by name."""
    return {
        spec.name: reading(
            located, partial(apply_mask, located, spec, order, corrections.get(spec.name))
        )
        for spec in specs
    }


def reading(located: LocatedModel, variant: Callable[[], AbstractContextManager[None]]) -> Reader:
    """Reads with the model as it behaves while `variant()`, such as `mask`, is open."""

    def read(batch: TokenBatch) -> torch.Tensor:
        with variant():
            return final_hidden(located, batch)

    return read


@torch.no_grad()
def evaluate(
    located: LocatedModel,
    variants: Mapping[str, Reader],
    rows: Sequence[torch.Tensor],
    prompt: int = 0,
    progress: Progress | None = None,
    checkpoint: Checkpoint | None = None,
) -> Evaluation:
    """Reads `rows` with the base and with each variant, and compares every prediction.

    Each batch is read once by the base for all variants. With `prompt`, only what follows the
    first `prompt` tokens of a row counts (for a shortened KV cache, which changes nothing before).
    With a checkpoint, an interrupted call goes on behind the last batch it finished.
    Raises `ValueError` if no row is longer than `prompt` + 1.
    """
    key = f"quality behind {prompt} of {' '.join(variants)}"
    noted = checkpoint.load(key) if checkpoint is not None else None
    tallies = [Tally(**seen) for seen in noted["tallies"]] if noted else []
    tallies = tallies or [Tally() for _ in ("base", *variants)]
    done = noted["batches"] if noted else 0
    waiting = list(make_batches(rows))[done:]
    for number, batch in enumerate(track(waiting, "Measuring quality", progress), done + 1):
        scored = batch.scored_positions(after=prompt)
        base, *finals = (
            _scored(read(batch), scored)
            for read in (lambda batch: final_hidden(located, batch), *variants.values())
        )
        targets = batch.targets(scored).to(base.device)
        compare(located.head, base, [base, *finals], targets, tallies)
        if checkpoint is not None:
            checkpoint.save(key, {"batches": number, "tallies": [asdict(t) for t in tallies]})
    if tallies[0].tokens == 0:
        raise ValueError(f"nothing to measure: no row is longer than {prompt + 1} tokens")
    return Evaluation(
        tokens=tallies[0].tokens,
        base_perplexity=tallies[0].perplexity,
        quality={
            name: Quality(tally.mean_kl, tally.agreement, tally.perplexity)
            for name, tally in zip(variants, tallies[1:], strict=True)
        },
    )


def _scored(hidden: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
    return hidden[scored.to(hidden.device)]
