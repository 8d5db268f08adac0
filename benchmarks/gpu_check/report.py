"""What a check found, as rows of the table in docs/benchmarks.md."""

from collections.abc import Iterable
from typing import Any

_HEADS = (
    "GPU, shape",
    "tokens/s at 1, 8, 64 streams",
    "of copy bandwidth",
    "prompt of 2,048, tokens/s",
    "graphs over eager",
    "FFN -50 %, of its bytes",
    "25 % fewer layers, of their bytes",
    "readers, times as fast",
)


def table_rows(result: dict[str, Any]) -> str:
    """Return the head of the table and a row for each shape; `-` for what had no time."""
    name = result["machine"].get("gpu", result["device"])
    lines = [_line(_HEADS), _line(["---"] * len(_HEADS))]
    for shape, found in result.get("shapes", {}).items():
        lines.append(_line([f"{name}, {shape}", *_cells(found)]))
    training = result.get("training")
    if training:
        speed = training["tokens_per_second"]
        lines.append(f"\nMaps of a reader are trained on {speed:,.0f} tokens/s.")
    tests = result["tests"]
    lines.append(f"Tests on the GPU: {tests['passed']} passed, {tests['failed']} failed.")
    return "\n".join(lines)


def _cells(found: dict[str, Any]) -> list[str]:
    if "left_out" in found:
        return [found["left_out"], *["-"] * (len(_HEADS) - 2)]
    decode = list(found.get("decode", {}).values())
    prompts = list(found.get("prefill", {}).values())
    graphs = found.get("graphs")
    variants = [one for name, one in found.get("variants", {}).items() if name != "base"]
    read = found.get("readers", {})
    readers = [list(one.values())[-1] for name, one in read.items() if name != "full"]
    return [
        _joined(f"{one['tokens_per_second']:,.0f}" for one in decode),
        _joined(f"{one['of_copy']:.0%}" for one in decode),
        f"{prompts[-1]['tokens_per_second']:,.0f}" if prompts else "-",
        f"{graphs['speed_up']:.1f}" if graphs else "-",
        *([_efficiency(one) for one in variants] or ["-", "-"]),
        _joined(f"{one['speed_up']:.2f}" for one in readers),
    ]


def _efficiency(figures: dict[str, float]) -> str:
    """Return the shares of the reduction of bytes that became speed, by number of rows."""
    return _joined(f"{v:.2f}" for name, v in figures.items() if name.startswith("efficiency"))


def _joined(cells: Iterable[str]) -> str:
    return ", ".join(cells) or "-"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
