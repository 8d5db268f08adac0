"""Teacher-forced quality of variants against the base, on text that they were not built on."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from rich.progress import Progress

from pruners.architecture import Decoder
from pruners.artefact import Quality
from pruners.divergence import Tally, compare
from pruners.progress import tracked
from pruners.replay import final_hidden
from pruners.rows import Batch, batches

Realization = Callable[[], AbstractContextManager[None]]
"""Opens a context in which the model behaves as a variant, such as `mask` or `streaming`."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Quality of each variant over the same `tokens` predictions, and the base's perplexity."""

    tokens: int
    base_perplexity: float
    quality: dict[str, Quality]


@torch.no_grad()
def evaluate(
    decoder: Decoder,
    variants: Mapping[str, Realization],
    rows: Sequence[torch.Tensor],
    prompt: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Reads `rows` with the base and with each variant, and compares every prediction.

    Each batch is read once by the base for all variants. With `prompt`, only what follows the
    first `prompt` tokens of a row counts (for a shortened KV cache, which changes nothing before).
    Raises `ValueError` if no row is longer than `prompt` + 1.
    """
    base_tally = Tally()
    tallies = [Tally() for _ in variants]
    for batch in tracked(list(batches(rows)), "Measuring quality", progress):
        scored = batch.scored(after=prompt)
        base = _final(decoder, batch, scored)
        finals = [base]
        for realize in variants.values():
            with realize():
                finals.append(_final(decoder, batch, scored))
        targets = batch.targets(scored).to(base.device)
        compare(decoder.head, base, finals, targets, [base_tally, *tallies])
    if base_tally.tokens == 0:
        raise ValueError(f"nothing to measure: no row is longer than {prompt + 1} tokens")
    return Evaluation(
        tokens=base_tally.tokens,
        base_perplexity=base_tally.perplexity,
        quality={
            name: Quality(tally.mean_kl, tally.agreement, tally.perplexity)
            for name, tally in zip(variants, tallies, strict=True)
        },
    )


def _final(decoder: Decoder, batch: Batch, scored: torch.Tensor) -> torch.Tensor:
    hidden = final_hidden(decoder, batch)
    return hidden[scored.to(hidden.device)]
