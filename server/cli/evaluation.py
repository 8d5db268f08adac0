"""The commands that measure variants: evaluate, sensitivity and lm-eval."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from server.cli.options import (
    PROMPTS_HELP,
    TEXT_HELP,
    Analyzer,
    ArtefactFolder,
    Model,
    OptionalArtefactFolder,
    parse_lengths,
    parse_names,
)
from server.engine.loading.source import DEFAULT_MODEL

app = typer.Typer()

_SENSITIVITY_TITLES = (
    "variant", "predictor", "R2", "rank", "oracle's gain", "over random", "over length",
)  # fmt: skip


@app.command()
def evaluate(
    artefact: ArtefactFolder,
    model: Model = DEFAULT_MODEL,
    text: Annotated[
        str | None,
        typer.Option(
            help=f"Text to measure on. Without: fresh text that the base writes. {TEXT_HELP} "
            "A file that ends in .raw is read as WikiText."
        ),
    ] = None,
    tasks: Annotated[
        list[Path] | None,
        typer.Option(help="A JSONL file of questions. It may be given several times."),
    ] = None,
    window: Annotated[int, typer.Option(min=16, help="Tokens of a row of text.")] = 1024,
    limit: Annotated[
        int | None, typer.Option(min=16, help="Tokens of text in all. Without: all of the text.")
    ] = None,
    task_limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task. Without: all of them.")
    ] = None,
    kv_prompt: Annotated[
        int, typer.Option(min=32, help="Tokens of a prompt before its KV cache is cut.")
    ] = 512,
    timing: Annotated[bool, typer.Option(help="Time each variant on this device.")] = True,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts that the base answers, to measure readers on. Without: pieces of the "
            f"text. {PROMPTS_HELP}"
        ),
    ] = None,
    prompt_limit: Annotated[int, typer.Option(min=8, help="Largest number of prompts.")] = 96,
    reading_lengths: Annotated[
        str, typer.Option(help="Tokens of the prompts of reading tasks, such as 200,1000.")
    ] = "200,1000",
    reading_items: Annotated[int, typer.Option(min=2, help="Questions of a reading task.")] = 40,
    json: Annotated[Path | None, typer.Option(help="File to write the table to, as well.")] = None,
) -> None:
    """Measure an artefact's variants and readers, and write its table and a report with plots.

    An interrupted evaluation goes on where it stopped.
    """
    from rich.console import Console

    from pruners.data.corpus import read_corpus
    from pruners.evaluation.reading_tasks import ReadingPlan
    from pruners.evaluation.report import render_tables
    from pruners.support.files import check_file
    from server.jobs.evaluate import EvaluationPlan, evaluate_artefact
    from server.jobs.reading_evaluation import ReadingEvaluation

    if json is not None:
        check_file(json, artefact, *(tasks or ()), *map(Path, filter(None, (model, text))))
    corpus = None if text is None else read_corpus(text)
    reading = ReadingEvaluation(
        None if prompts is None else read_corpus(prompts),
        prompt_limit,
        ReadingPlan(parse_lengths(reading_lengths), reading_items),
    )
    plan = EvaluationPlan(
        corpus, tuple(tasks or ()), window, limit, task_limit, kv_prompt, timing, reading
    )
    evaluated = evaluate_artefact(model, artefact, plan)
    for table in render_tables(evaluated):
        Console(width=160).print(table)
    if json is not None:
        evaluated.table.save(json)
    typer.echo(f"{artefact / 'report' / 'report.md'}")


@app.command()
def sensitivity(
    artefact: ArtefactFolder,
    prompts: Annotated[str, typer.Option(help=PROMPTS_HELP)],
    model: Model = DEFAULT_MODEL,
    limit: Annotated[int, typer.Option(min=40, help="Largest number of prompts.")] = 300,
    tokens: Annotated[int, typer.Option(min=8, help="Largest number of tokens of an answer.")] = 48,
    analyzer: Analyzer = "patterns",
) -> None:
    """Learn from real prompts what each variant will lose on a prompt, and say how well that works.

    The server reads the result from the artefact's folder.
    """
    from rich.console import Console

    from pruners.data.corpus import read_corpus
    from server.jobs.sensitivity import learn_sensitivity

    corpus = read_corpus(prompts)
    learned = learn_sensitivity(model, artefact, corpus, limit, tokens, analyzer)
    for backend, report in learned.report["backends"].items():
        Console(width=120).print(_sensitivity_table(backend, report))


@app.command("lm-eval")
def lm_eval(
    tasks: Annotated[
        str, typer.Option(help="Names of the harness's tasks, such as arc_easy,piqa.")
    ],
    variant: Annotated[str, typer.Option(help="Name of the variant, or base.")] = "base",
    url: Annotated[
        str | None,
        typer.Option(help="Address of a running server. Without: `transformers` computes."),
    ] = None,
    model: Model = DEFAULT_MODEL,
    artefact: OptionalArtefactFolder = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Questions of each task. Without: all of them.")
    ] = None,
    shots: Annotated[
        int | None,
        typer.Option(min=0, help="Examples before each question. Without: as the task says."),
    ] = None,
    include: Annotated[Path | None, typer.Option(help="Folder of further tasks.")] = None,
    json: Annotated[Path | None, typer.Option(help="File to write the results to.")] = None,
) -> None:
    """Run EleutherAI's evaluation harness on the base or a variant."""
    from pruners.support.files import check_file, write_json
    from server.jobs.lm_eval import HarnessRequest, run_harness, run_harness_on_server

    if json is not None:
        check_file(json, *filter(None, (artefact, include, Path(model))))
    request = HarnessRequest(parse_names(tasks), limit, shots, include)
    if url is None:
        results = run_harness(model, artefact, variant, request)
    else:
        results = run_harness_on_server(url.rstrip("/"), model, variant, request)
    for task, figures in results.items():
        shown = {name: value for name, value in figures.items() if isinstance(value, float)}
        line = ", ".join(f"{name.partition(',')[0]} {value:.4f}" for name, value in shown.items())
        typer.echo(f"{variant}, {task}: {line}")
    if json is not None:
        write_json(json, results)


def _sensitivity_table(backend: str, report: Mapping[str, Any]) -> object:
    """Return a table for the console: how well each predictor does for each variant."""
    from rich.table import Table

    table = Table(title=f"{backend}: cross-validated, 95 % intervals in nats per token")
    for title in _SENSITIVITY_TITLES:
        table.add_column(title, justify="right")
    for variant, predictors in report.items():
        for predictor in ("all", "all+loss", "length", "rule"):
            figures = predictors[predictor]
            intervals = (
                f"{low:+.4f} to {high:+.4f}"
                for low, high in (figures["over_random"], figures["over_length"])
            )
            numbers = (
                f"{figures[key]:.2f}" if key in figures else "" for key in ("r2", "rho", "gain")
            )
            table.add_row(variant, predictor, *numbers, *intervals)
    return table
