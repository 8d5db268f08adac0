"""What the report says about readers."""

from typing import TypeAlias

from pruners.artefact.folder import Artefact
from pruners.artefact.table import ReaderQuality, Table

Section: TypeAlias = tuple[str, list[str], list[list[str]]]
"""Title, headers and rows of a table."""


def reader_sections(artefact: Artefact) -> list[Section]:
    """Return what readers are and lose, and the reading tasks; nothing without readers."""
    sections = []
    if artefact.readers:
        title = "Readers: KL on answers to prompts by their length in tokens (95 % interval)"
        sections.append((title, *_readers(artefact)))
    if artefact.table.reading_tasks:
        title = "Reading tasks: share of right answers (95 % interval)"
        sections.append((title, *_reading_tasks(artefact.table)))
    return sections


def _readers(artefact: Artefact) -> tuple[list[str], list[list[str]]]:
    table, layers = artefact.table, artefact.shape.layers
    measured = table.reader_quality
    buckets = list(dict.fromkeys(bucket for by in measured.values() for bucket in by))
    headers = ["reader", "layers", "in full", "reading", "maps, MB", "agreement", *buckets]
    rows = [["full", str(layers), "all", "1", "0", "1", *("0" for _ in buckets)]]
    for name, reader in artefact.readers.items():
        cost, quality = table.reader_cost.get(name), measured.get(name, {})
        rows.append(
            [
                name,
                f"{reader.depth} of {layers}",
                f"last {reader.last}{' and numbers' if reader.numbers else ''}",
                "" if cost is None else f"{cost.share:.3f}",
                "" if cost is None else f"{cost.bytes / 1e6:.1f}",
                f"{quality['all'].agreement:.3f}" if "all" in quality else "",
                *(_loss(quality.get(bucket)) for bucket in buckets),
            ]
        )
    return headers, rows


def _loss(quality: ReaderQuality | None) -> str:
    if quality is None:
        return ""
    return f"{quality.kl:.3f} ±{quality.half_width:.3f} ({quality.prompts})"


def _reading_tasks(table: Table) -> tuple[list[str], list[list[str]]]:
    tasks = table.reading_tasks
    names = list(dict.fromkeys(name for by in tasks.values() for name in by))
    items = {task: next(iter(by.values())).items for task, by in tasks.items()}
    rows = []
    for name in names:
        row = [name]
        for by in tasks.values():
            one = by.get(name)
            row.append("" if one is None else f"{one.acc:.3f} ±{one.half_width:.3f}")
        rows.append(row)
    return ["read or answered by", *(f"{task} ({items[task]})" for task in tasks)], rows
