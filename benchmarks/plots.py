"""Figures of benchmark results. `python -m benchmarks.plots` draws the documentation's again.

They are drawn from the files in `benchmarks/results`, without measuring anything.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

from benchmarks.support.results import RESULTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Figures = Mapping[str, float]
"""The figures of one run, by name: `attained`, `quality` and others."""
Runs = Mapping[tuple[float, str], Sequence[Figures]]
"""Load and policy to the figures of each repeat."""
OVERLOAD = Path(__file__).parents[1] / "docs" / "overload.png"
POLICIES = {
    "llama-server Q4_0": "llama-server,\nqueueing",
    "static:base": "base,\nqueueing",
    "refusing:base": "base,\nrefusing early",
    "static:mix-50": "smallest variant\nfor all",
    "rule without readers": "Trimtab\nwithout readers",
    "rule": "Trimtab\n(the rule)",
}
"""Policies of the overload figure, from left to right, and their labels."""


def draw_bars(path: Path, values: Mapping[str, Figures], label: str) -> None:
    """Draw one group of bars for each kind of measurement that more than one engine has."""
    kinds = dict.fromkeys(kind for found in values.values() for kind in found)
    shared = [k for k in kinds if sum(k in found for found in values.values()) > 1]
    figure, axes = plt.subplots(1, len(shared), figsize=(3 * len(shared), 3.4), squeeze=False)
    for axis, kind in zip(axes[0], shared, strict=True):
        named = {name: found[kind] for name, found in values.items() if kind in found}
        axis.bar(range(len(named)), named.values(), color=[f"C{i}" for i in range(len(named))])
        axis.set_xticks(range(len(named)), named, rotation=35, ha="right", fontsize=8)
        axis.set_title(kind, fontsize=9)
        axis.set_ylabel(label)
    _save(figure, path)


def draw_quality_by_load(path: Path, runs: Runs) -> None:
    """Draw the share in time against quality: a point a repeat, a panel a load."""
    loads = sorted({load for load, _ in runs})
    colours = {name: f"C{i}" for i, name in enumerate(sorted({name for _, name in runs}))}
    figure, axes = plt.subplots(1, len(loads), figsize=(4.2 * len(loads), 4), squeeze=False)
    for axis, load in zip(axes[0], loads, strict=True):
        for _, policy in sorted(key for key in runs if key[0] == load):
            found = runs[load, policy]
            x, y = ([one[name] for one in found] for name in ("attained", "quality"))
            axis.scatter(x, y, label=policy, color=colours[policy])
        axis.set(title=f"{load:g} times the base's capacity", xlabel="in time", ylabel="quality")
        axis.set_xlim(-0.05, 1.05)
        axis.legend(fontsize=7)
    _save(figure, path)


def draw_overload(path: Path, runs: Runs) -> None:
    """Draw medians above the base's capacity: requests in time, and quality over all requests."""
    policies = [name for name in POLICIES if any(name == policy for _, policy in runs)]
    loads = sorted({load for load, _ in runs if load > 1})
    panels = {"attained": "answered in time", "quality": "quality, late and refused count 0"}
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.4), sharey=True)
    width = 0.8 / len(loads)
    for axis, (figure_name, title) in zip(axes, panels.items(), strict=True):
        for place, load in enumerate(loads):
            heights = [median(one[figure_name] for one in runs[load, name]) for name in policies]
            left = [
                index + (place - (len(loads) - 1) / 2) * width for index in range(len(policies))
            ]
            label = f"{load:g} times what the base can answer"
            shown = axis.bar(left, heights, width, label=label, color=f"C{place}")
            axis.bar_label(shown, fmt="%.2f", fontsize=7)
        axis.set_xticks(range(len(policies)), [POLICIES[name] for name in policies], fontsize=8)
        axis.set(title=title, ylim=(0, 1.1))
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(fontsize=8)
    _save(figure, path)


def draw_losses_by_compute(path: Path, ways: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw loss against compute: for reading, and for the whole request; a colour a kind of way.

    `ways` are those of a result of `benchmarks.reading`. The base is left out: it loses nothing.
    """
    kinds = list(dict.fromkeys(way["kind"] for way in ways.values() if way["kl"] > 0))
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), sharey=True)
    for axis, share in zip(axes, ("reading", "request"), strict=True):
        for colour, kind in enumerate(kinds):
            found = {n: way for n, way in ways.items() if way["kind"] == kind and way["kl"] > 0}
            x, y = ([way[name] for way in found.values()] for name in (share, "kl"))
            halves = [way["half_width"] or 0.0 for way in found.values()]
            axis.errorbar(x, y, halves, fmt="o", label=kind, color=f"C{colour}", capsize=2)
            for name, left, up in zip(found, x, y, strict=True):
                axis.annotate(name, (left, up), (4, 3), textcoords="offset points", fontsize=6)
        axis.set(yscale="log", xlabel=f"{share}, share of the base's multiply-adds")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("KL to the base, nats per written token")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def read_replay(path: Path) -> Runs:
    """Return the runs of a result of `benchmarks.replay`."""
    runs: dict[str, list[Figures]] = json.loads(path.read_text())["runs"]
    split = {name: name.split("x ", 1) for name in runs}
    return {(float(load), policy): runs[name] for name, (load, policy) in split.items()}


def main() -> None:
    """Draw the figures of the documentation."""
    for name in ("replay", "replay-own-lengths"):
        runs = read_replay(RESULTS / f"{name}.json")
        draw_quality_by_load(RESULTS / f"{name}.png", runs)
    draw_overload(OVERLOAD, runs)
    print(f"written to {RESULTS} and {OVERLOAD}")


if __name__ == "__main__":
    main()
