"""What each way loses on the base's own answers, and what it costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch
from rich.progress import Progress

from benchmarks.reading.examples import Example, length_name
from benchmarks.reading.ways import Way
from benchmarks.reading.work import RequestWork
from pruners.architecture import LocatedModel
from pruners.support.progress import track

_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Loss:
    """One way on one request: KL in nats per token of the answer, and costs over the base's.

    `reading` and `request` are shares of the base's multiply-adds, for reading the prompt and for
    the whole request.
    """

    kl: float
    reading: float
    request: float


Losses = Mapping[str, Sequence[Loss]]
"""The losses of each way, by its name, one for each request."""


@torch.no_grad()
def measure_losses(
    located: LocatedModel,
    ways: Sequence[Way],
    examples: Sequence[Example],
    progress: Progress | None = None,
) -> dict[str, list[Loss]]:
    """Return what each way loses on each request; the first way is the base.

    The KL is over the full vocabulary, of the base's distribution from the way's, the mean over the
    answer's tokens.
    """
    losses: dict[str, list[Loss]] = {way.name: [] for way in ways}
    for example in track(examples, "Reading prompts", progress):
        work: dict[str, RequestWork] = {}
        base: torch.Tensor | None = None
        for way in ways:
            answered = way.answer(example, work)
            log_q = located.head(answered.hidden).float().log_softmax(-1)
            base = log_q if base is None else base
            whole = work.setdefault(ways[0].name, answered.work)
            work[way.name] = answered.work
            losses[way.name].append(
                Loss(
                    kl=float((base.exp() * (base - log_q)).sum(-1).double().mean()),
                    reading=answered.work.reading / whole.reading,
                    request=answered.work.total / whole.total,
                )
            )
    return losses


def summarise(losses: Sequence[Loss], examples: Sequence[Example]) -> dict[str, Any]:
    """Return means over requests with half the 95 % interval of the KL, also by prompt length.

    `yield` is exp(-mean KL) over the mean cost of the whole request.
    """
    groups: dict[str, list[Loss]] = {}
    for loss, example in zip(losses, examples, strict=True):
        groups.setdefault(length_name(example.length), []).append(loss)
    request = fmean(one.request for one in losses)
    everything = _mean(losses)
    return {
        "reading": fmean(one.reading for one in losses),
        "request": request,
        "yield": math.exp(-everything["kl"]) / request,
        **everything,
        "by_length": {name: _mean(group) for name, group in groups.items()},
    }


def _mean(losses: Sequence[Loss]) -> dict[str, Any]:
    """Return the mean KL with half its 95 % interval, None for a single request."""
    values = [one.kl for one in losses]
    half = _Z95 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"kl": fmean(values), "half_width": half, "requests": len(values)}
