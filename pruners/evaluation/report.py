"""Measurements for people: Rich tables on a terminal, Markdown and plots in a folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

from pruners.artefact.folder import Artefact
from pruners.artefact.table import Quality, Table
from pruners.evaluation.pareto import pareto_front, pareto_hull
from pruners.evaluation.plots import draw_plots
from pruners.evaluation.reader_report import Section, reader_sections
from pruners.support.files import FolderKind, write_text
from pruners.variant import BASE

REPORT = FolderKind("report", ("report.md",))


def render_tables(artefact: Artefact) -> list[RichTable]:
    """Return a table for each kind of measurement that was made, for a terminal."""
    tables = []
    for title, headers, rows in _sections(artefact):
        table = RichTable(title=title)
        for index, header in enumerate(headers):
            table.add_column(header, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        tables.append(table)
    return tables


def write_report(artefact: Artefact, folder: Path) -> None:
    """Write `report.md` and its plots into `folder`, each under a temporary name first."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_plots(artefact, folder)
    what = "Readers and variants" if artefact.readers else "Variants"
    lines = [f"# {what} of {artefact.model_name}", "", *_evaluation_text(artefact.table), ""]
    for title, headers, rows in _sections(artefact):
        lines += [f"## {title}", "", _markdown_row(headers), _markdown_row(["---"] * len(headers))]
        lines += [*(_markdown_row(row) for row in rows), ""]
    for prompt, answers in artefact.table.samples.items():
        lines += [f"## {prompt}", ""]
        lines += [f"- **{name}**: {' '.join(answer.split())}" for name, answer in answers.items()]
        lines.append("")
    lines += [f"![{name.removesuffix('.png')}]({name})" for name in plots]
    write_text(folder / "report.md", "\n".join(lines) + "\n")


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _evaluation_text(table: Table) -> list[str]:
    text = table.evaluation
    if not text:
        return []
    return [
        f"Measured on {text['predictions']:,} predictions in windows of {text['window']} tokens: "
        f"{text['source']} (hash {text['hash']}). KL to the base in nats per token, teacher-forced;"
        " agreement is the share of equal most likely tokens. `*` marks the Pareto front of bytes "
        "against KL, `**` its convex hull."
    ]


def _sections(artefact: Artefact) -> list[Section]:
    """Return title, headers and rows of every table of the report, those of readers first."""
    table = artefact.table
    sections = reader_sections(artefact)
    if table.quality:
        sections.append(("Quality and size", *_variants(artefact)))
    for machine in table.speed.values():
        where = machine["machine"].get("gpu", machine["machine"]["processor"])
        title = f"Seconds on {where}, {machine['weights']}, {machine['machine']['threads']} threads"
        sections.append((title, *_speed(machine)))
        if table.quality:
            title = "Yield: exp(-KL) over the time of a step beside the base's"
            sections.append((title, *_yields(table, machine)))
        if machine.get("kv") and table.kv_quality:
            title = "KV budgets: a step from one budget of tokens to two, beside one without"
            sections.append((title, *_kv_yields(table, machine["kv"])))
    if "training" in artefact.provenance:
        title = "Training beside frozen weights: KL on text that only chose the best state"
        sections.append((title, *_training(artefact.provenance["training"])))
    if table.tasks:
        sections.append(("Tasks: accuracy, by length in brackets (95 % interval)", *_tasks(table)))
    if table.kv_quality:
        headers = ["KV budget", "KL", "agreement", "perplexity"]
        rows = [[str(b), *_quality(q)] for b, q in sorted(table.kv_quality.items())]
        sections.append(("KV budgets as served, over as many tokens again", headers, rows))
    if table.eviction:
        sections.append(
            ("KV eviction: KL by the share of the prompt that stays", *_eviction(table))
        )
    return sections


def _variants(artefact: Artefact) -> tuple[list[str], list[list[str]]]:
    table = artefact.table
    points = {BASE: (1.0, 0.0)} | {
        n: (table.cost[n].bytes_read, q.kl) for n, q in table.quality.items()
    }
    front, hull = set(pareto_front(points)), set(pareto_hull(points))
    headers = [
        "variant",
        "parameters kept",
        "bytes a token",
        "own, millions",
        "KL",
        "agreement",
        "ppl",
    ]
    headers.append("ppl ratio")
    base = table.evaluation["base_perplexity"]
    rows = [[BASE, "1", "1", "0", "0", "1", f"{base:.2f}", "1"]]
    for name, quality in table.quality.items():
        cost = table.cost[name]
        mark = "**" if name in hull else "*" if name in front else ""
        rows.append(
            [
                name + mark,
                f"{cost.parameter_share:.3f}",
                f"{cost.bytes_read:.3f}",
                f"{cost.correction_parameters / 1e6:.2f}",
                *_quality(quality),
                f"{quality.perplexity / base:.3f}",
            ]
        )
    return headers, rows


def _quality(quality: Quality) -> list[str]:
    return [f"{quality.kl:.3f}", f"{quality.agreement:.3f}", f"{quality.perplexity:.2f}"]


def _speed(machine: dict[str, dict[str, dict[str, float]]]) -> tuple[list[str], list[list[str]]]:
    decode, prefill = machine["decode"], machine["prefill"]
    sizes = list(decode[BASE])
    headers = ["variant", *(f"decode {s}" for s in sizes), *(f"prompt {t}" for t in prefill[BASE])]
    headers.append("speed-up")
    rows = []
    for name, seconds in decode.items():
        faster = decode[BASE][sizes[0]] / seconds[sizes[0]]
        cells = [*seconds.values(), *prefill[name].values()]
        rows.append([name, *(f"{value:.4f}" for value in cells), f"{faster:.2f}x"])
    return headers, rows


def _yields(
    table: Table, machine: dict[str, dict[str, dict[str, float]]]
) -> tuple[list[str], list[list[str]]]:
    """Return the rows of yield = exp(-KL) / relative time.

    Above 1 a variant gains more than it loses. `**` marks the convex hull of relative time against
    1 - exp(-KL), for each size of batch.
    """
    decode = machine["decode"]
    sizes = list(decode[BASE])
    marks = {}
    for size in sizes:
        points = {BASE: (1.0, 0.0)} | {
            name: (decode[name][size] / decode[BASE][size], 1 - math.exp(-quality.kl))
            for name, quality in table.quality.items()
        }
        marks[size] = set(pareto_hull(points))
    rows = []
    for name, quality in table.quality.items():
        quality_kept = math.exp(-quality.kl)
        cells = [
            f"{quality_kept * decode[BASE][size] / decode[name][size]:.3f}"
            f"{'**' if name in marks[size] else ''}"
            for size in sizes
        ]
        rows.append([name, f"{quality_kept:.3f}", *cells])
    return ["variant", "exp(-KL)", *(f"decode {size}" for size in sizes)], rows


def _kv_yields(
    table: Table, measured: dict[str, dict[str, dict[str, float]]]
) -> tuple[list[str], list[list[str]]]:
    """Return the rows of yield = exp(-KL) / relative time of KV budgets, evictions included."""
    sizes = list(next(iter(measured.values())))
    headers = ["KV budget", "exp(-KL)"]
    headers += [
        f"{what}, {rows} row{'s' * (rows != '1')}" for rows in sizes for what in ("time", "yield")
    ]
    rows = []
    for budget, by_rows in measured.items():
        quality_kept = math.exp(-table.kv_quality[int(budget)].kl)
        times = [by_rows[size]["kept"] / by_rows[size]["whole"] for size in sizes]
        cells = [f"{value:.3f}" for time in times for value in (time, quality_kept / time)]
        rows.append([budget, f"{quality_kept:.3f}", *cells])
    return headers, rows


def _training(training: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    headers = ["variant", "tier", "rank", "tokens of text", "before", "after"]
    rows = [
        [
            name,
            one["tier"],
            str(one["rank"] or ""),
            f"{one['text']['tokens']:,}",
            f"{one['held_out_kl'][0]:.3f}",
            f"{min(one['held_out_kl']):.3f}",
        ]
        for name, one in training.items()
    ]
    return headers, rows


def _tasks(table: Table) -> tuple[list[str], list[list[str]]]:
    names = list(next(iter(table.tasks.values())))
    rows = []
    for name in names:
        row = [name]
        for task in table.tasks.values():
            one = task[name]
            normed = "" if one.acc_norm is None else f" ({one.acc_norm:.3f})"
            row.append(f"{one.acc:.3f}{normed} ±{one.half_width:.3f}, as base {one.same:.2f}")
        rows.append(row)
    return [
        "variant",
        *(f"{task} ({of[names[0]].items})" for task, of in table.tasks.items()),
    ], rows


def _eviction(table: Table) -> tuple[list[str], list[list[str]]]:
    shares = list(next(iter(table.eviction.values())))
    rows = [
        [name, *(f"{q.kl:.3f}" for q in by_share.values())]
        for name, by_share in table.eviction.items()
    ]
    return ["scorer", *shares], rows
