"""The tables of the benchmark."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_WIDTH = 170


def print_losses(ways: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what each way costs and loses, in all and by prompt length."""
    lengths = list(dict.fromkeys(name for way in ways.values() for name in way["by_length"]))
    counts = next(iter(ways.values()))
    table = Table(title="KL to the base, nats per token of its own answers, with 95 % intervals")
    table.add_column("way")
    for column in ("reading", "request", "yield", f"all ({counts['requests']})"):
        table.add_column(column, justify="right")
    for name in lengths:
        table.add_column(f"{name} ({counts['by_length'][name]['requests']})", justify="right")
    for name, way in ways.items():
        shares = (f"{way[share]:.2f}" for share in ("reading", "request", "yield"))
        groups = (way, *(way["by_length"][length] for length in lengths))
        table.add_row(name, *shares, *map(_interval, groups))
    Console(width=_WIDTH).print(table)


def print_tasks(tasks: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Print the share of right answers by task and way, with 95 % intervals."""
    ways = list(dict.fromkeys(way for found in tasks.values() for way in found))
    table = Table(title="Right answers, with 95 % intervals")
    for column in ("task", "items", *ways):
        table.add_column(column, justify="right" if table.columns else "left")
    for task, found in tasks.items():
        cells = (found[way] for way in ways)
        shares = (f"{one['right']:.2f} ({one['low']:.2f}-{one['high']:.2f})" for one in cells)
        table.add_row(task, f"{next(iter(found.values()))['items']}", *shares)
    Console(width=_WIDTH).print(table)


def _interval(group: Mapping[str, Any]) -> str:
    half = group["half_width"]
    return f"{group['kl']:.3f}" + ("" if half is None else f" ±{half:.3f}")
