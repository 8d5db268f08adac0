"""Figures of benchmark results."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


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
