"""Figures of benchmark results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Runs = Mapping[tuple[float, str], Sequence[Mapping[str, float]]]
"""Load and policy to the figures of each repeat."""


def bars(path: Path, values: Mapping[str, Mapping[str, float]], label: str) -> None:
    """One group of bars for each kind of measurement that more than one engine has."""
    kinds = dict.fromkeys(kind for found in values.values() for kind in found)
    shared = [k for k in kinds if sum(k in found for found in values.values()) > 1]
    figure, axes = plt.subplots(1, len(shared), figsize=(3 * len(shared), 3.4))
    for axis, kind in zip([axes] if len(shared) == 1 else axes, shared, strict=True):
        named = {name: found[kind] for name, found in values.items() if kind in found}
        axis.bar(range(len(named)), named.values(), color=[f"C{i}" for i in range(len(named))])
        axis.set_xticks(range(len(named)), named, rotation=35, ha="right", fontsize=8)
        axis.set_title(kind, fontsize=9)
        axis.set_ylabel(label)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def scatter_by_load(path: Path, runs: Runs) -> None:
    """Share in time against effective quality, a point for each repeat, a panel for each load."""
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
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
