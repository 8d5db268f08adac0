"""The report on a trained policy: Markdown, JSON and one figure, all from the evaluation runs."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from policies.features import choice_names
from policies.simulation.choices import choice_labels, profile_choices
from policies.simulation.profile import Profile
from policies.training.evaluation import ORACLE, RULE, EvaluationRun, confusion
from pruners.support.files import replace_file, write_json, write_text

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

SCHEMA = 1
_FIGURES = (
    "attained", "quality", "best_quality", "quality_lost_half", "best_quality_lost_half",
    "loss", "refused", "in_full", "reward",
)  # fmt: skip
_OUTLIER = 3.0
"""Robust standard deviations (1.4826 times the median absolute deviation)."""


def write_report(
    folder: Path,
    profile: Profile,
    summary: Mapping[str, Any],
    runs: Mapping[str, Sequence[EvaluationRun]],
    name: str,
    rewards: Sequence[float],
) -> None:
    """Write `report.md`, `report.json` and `report.png` about the policy `name`.

    `summary` holds the figures of `summarize`, with the decision under "verdict". `rewards` are
    those of the episodes of the training.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = choice_names(choice_labels(profile_choices(profile)))
    training = {"episode_rewards": list(rewards), "confusion": confusion(runs[name], names)}
    body = {"schema": SCHEMA, **summary, **training}
    write_json(folder / "report.json", body)
    write_text(folder / "report.md", _markdown(summary, name))
    _figure(folder / "report.png", names, runs, name, rewards)


def _markdown(summary: Mapping[str, Any], name: str) -> str:
    lines = [f"# {name}: {'promoted' if summary['verdict']['promoted'] else 'not promoted'}", ""]
    verdict = summary["verdict"]
    for text, key in (
        ("gain over the rule", "over_rule"),
        (f"gain over {verdict['best_static']}, the best static in hindsight", "over_best_static"),
        (f"regret against the oracle, {len(verdict['trainings'])} trainings", "regret"),
        ("the rule's regret", "rule_regret"),
    ):
        low, high = verdict[key]
        lines.append(f"- {text}, reward a request, 95 %: {low:+.4f} to {high:+.4f}")
    rewards = ", ".join(f"{reward:+.4f}" for reward in verdict["trainings"])
    lines.append(f"- reward a request by training seed, the policy's own first: {rewards}")
    for what, (low, high) in summary.get("ablations", {}).items():
        lines.append(f"- {name} without the features of the {what}, against it: "
                     f"{low:+.4f} to {high:+.4f}")  # fmt: skip
    lines += ["", f"{summary['about']}", ""]
    for load, bound in summary["fluid_bound"].items():
        lines += [
            f"## {load} times what the base can serve",
            "",
            "| policy | in time | quality | best with as many | quality, lost -0.5 | "
            "best with as many | loss | refused | read in full | reward |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
        for policy, loads in summary["policies"].items():
            cells = " | ".join(f"{loads[load][figure]:.3f}" for figure in _FIGURES)
            lines.append(f"| {policy} | {cells} |")
        lines += [
            f"| fluid bound | | {bound['quality']:.3f} | | {bound['quality_lost_half']:.3f} "
            "| | | | | |",
            "",
        ]
    return "\n".join(lines)


def _figure(
    path: Path,
    names: Sequence[str],
    runs: Mapping[str, Sequence[EvaluationRun]],
    name: str,
    rewards: Sequence[float],
) -> None:
    figure, axes = plt.subplots(2, 4, figsize=(22, 10), constrained_layout=True)
    ((curve, bars, latency, loss), (by_complexity, by_load, matrix, spread)) = axes
    _curve(curve, rewards)
    _bars(bars, runs)
    served = [
        (complexity, outcome)
        for run in runs[name]
        for complexity, outcome in zip(run.complexity, run.outcomes, strict=True)
        if outcome.action is not None
    ]
    if served:
        x = np.array([complexity for complexity, _ in served])
        _scatter(latency, x, np.array([o.seconds for _, o in served]), "seconds of an answer")
        _scatter(loss, x, np.array([o.loss for _, o in served]), "loss, nats per token")
    complexities = [
        (c, n) for r in runs[name] for c, n in zip(r.complexity, r.choices, strict=True)
    ]
    loads = [(r.load, n) for r in runs[name] for n in r.choices]
    edges = np.quantile([c for c, _ in complexities], [0.25, 0.5, 0.75])
    quarters = [(float(np.searchsorted(edges, c)), n) for c, n in complexities]
    _frequencies(by_complexity, quarters, names, "quarter by complexity")
    _frequencies(by_load, loads, names, "load")
    counts = np.array(confusion(runs[name], names), float)
    matrix.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues")
    matrix.set(title="chosen where the oracle would choose", xlabel="chosen", ylabel="oracle")
    matrix.set_xticks(range(len(names)), names, rotation=90)
    matrix.set_yticks(range(len(names)), names)
    shown = [name, RULE, ORACLE]
    spread.boxplot([[run.reward for run in runs[one]] for one in shown], tick_labels=shown)
    spread.set(title="reward a request, by run")
    replace_file(path, partial(figure.savefig, format="png", dpi=80))
    plt.close(figure)


def _curve(axes: Axes, rewards: Sequence[float]) -> None:
    axes.plot(rewards, color="0.8", linewidth=0.6)
    width = max(1, len(rewards) // 20)
    if len(rewards) >= width:
        smooth = np.convolve(rewards, np.ones(width) / width, "valid")
        axes.plot(np.arange(len(smooth)) + width - 1, smooth)
    axes.set(title="reward of an episode", xlabel="episode")


def _bars(axes: Axes, runs: Mapping[str, Sequence[EvaluationRun]]) -> None:
    means = {
        name: float(np.mean([run.reward for run in of_name])) for name, of_name in runs.items()
    }
    order = sorted(means, key=means.__getitem__)
    axes.barh(order, [means[name] for name in order])
    axes.set(title="mean reward a request, all loads")


def _scatter(axes: Axes, x: np.ndarray, y: np.ndarray, title: str) -> None:
    """Draw points `[points]` with a trend line. Outliers are marked and stay in."""
    median = np.median(y)
    scale = 1.4826 * np.median(np.abs(y - median)) + 1e-12
    outliers = np.abs(y - median) > _OUTLIER * scale
    axes.scatter(x[~outliers], y[~outliers], s=4, alpha=0.3)
    axes.scatter(
        x[outliers],
        y[outliers],
        s=9,
        marker="x",
        color="tab:red",
        label=f"{outliers.sum()} outliers",
    )
    if np.ptp(x) > 0:
        slope, level = np.polyfit(x, y, 1)
        ends = np.array([x.min(), x.max()])
        axes.plot(ends, slope * ends + level, color="black", label=f"{slope:+.2f} a unit")
    axes.legend()
    axes.set(title=title, xlabel="complexity of the prompt")


def _frequencies(
    axes: Axes, pairs: Sequence[tuple[float, str]], names: Sequence[str], title: str
) -> None:
    keys = sorted({key for key, _ in pairs})
    below = np.zeros(len(keys))
    for name in names:
        share = np.array(
            [
                sum(n == name for k, n in pairs if k == key)
                / max(1, sum(k == key for k, _ in pairs))
                for key in keys
            ]
        )
        if share.any():
            axes.bar([f"{key:g}" for key in keys], share, bottom=below, label=name)
            below += share
    axes.legend(fontsize=7)
    axes.set(title=f"choices by {title}")
