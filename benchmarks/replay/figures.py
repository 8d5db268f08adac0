"""The figures of a run, and their table."""

import math
from collections.abc import Sequence
from statistics import fmean, median

from rich.console import Console
from rich.table import Table

from benchmarks.replay.comparison import RunResult
from benchmarks.replay.open_loop import Objective, ReplayRun
from pruners.variant import BASE


def run_result(run: ReplayRun, objective: Objective, kl: Sequence[float]) -> RunResult:
    """Return what became of each request. `kl` has each answer's loss in nats per token."""
    met = [objective.met(answer) for answer in run.answers]
    quality = [math.exp(-loss) if good else 0.0 for loss, good in zip(kl, met, strict=True)]
    return RunResult([float(good) for good in met], quality)


def figures(run: ReplayRun, objective: Objective, kl: Sequence[float]) -> dict[str, float]:
    """Return the figures of one run.

    `kl` has the loss of each answer, in nats per token. A lost request counts 0 in `quality`, and
    -0.5 in `quality_lost_half`. `base` is the share of answers that the base wrote, `full` that of
    answers to prompts that were read in full, `budget` that of answers with a KV budget.
    """
    answers = run.answers
    met = [objective.met(answer) for answer in answers]
    kept = [math.exp(-loss) for loss, good in zip(kl, met, strict=True) if good]
    served = [a for a in answers if a.status == 200 and a.ttft is not None]
    attained = sum(met) / len(met)
    quality = sum(kept) / len(met)
    ends = [a.request.at + a.seconds for a in served if a.seconds is not None]
    losses = [loss for loss, good in zip(kl, met, strict=True) if good]
    return {
        "offered": len(answers),
        "load": len(answers) / max(a.request.at for a in answers) / run.capacity,
        "attained": attained,
        "quality": quality,
        "quality_lost_half": quality - 0.5 * (1 - attained),
        "loss": fmean(losses) if losses else float("nan"),
        "worst_quality": min(kept, default=0.0) if attained == 1 else 0.0,
        "refused": sum(a.status == 503 for a in answers) / len(answers),
        "base": sum(a.status == 200 and a.action.variant == BASE for a in answers) / len(answers),
        "full": sum(a.status == 200 and a.action.reader is None for a in answers) / len(answers),
        "budget": sum(a.action.kv_budget is not None for a in answers) / len(answers),
        "ttft_mean": fmean([a.ttft for a in served if a.ttft is not None]) if served else 0.0,
        "tpot_median": median([a.tpot or 0.0 for a in served]) if served else 0.0,
        "tokens_per_second": sum(a.request.output for a in served) / max(ends, default=1.0),
    }


SHOWN = (
    "load", "attained", "quality", "quality_lost_half", "loss", "worst_quality", "refused", "base",
    "full", "budget", "ttft_mean", "tpot_median", "tokens_per_second",
)  # fmt: skip


def print_table(console: Console, runs: dict[tuple[float, str], list[dict[str, float]]]) -> None:
    """Print medians over repeats, and half the range of the attained share."""
    shown = Table(title="medians over repeats; +- half the range of 'attained'")
    for title in ("wanted", "policy", *SHOWN):
        shown.add_column(title)
    for (load, policy), found in sorted(runs.items()):
        values = [f"{median([one[name] for one in found]):.3f}" for name in SHOWN]
        attained = [one["attained"] for one in found]
        values[1] += f" +-{(max(attained) - min(attained)) / 2:.2f}"
        shown.add_row(f"{load:g}", policy, *values)
    console.print(shown)
