"""The commands of the offline half: build, train, measure, learn from prompts, export."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from pruners.support.errors import UserError
from server.engine.loading.source import DEFAULT_MODEL

if TYPE_CHECKING:
    import torch

offline = typer.Typer()
MODEL_HELP = f"A Hugging Face id, a folder or a GGUF file. Default {DEFAULT_MODEL}."


class UsageError(UserError):
    """Something the user asked for cannot be done. One clear line, exit code 2."""


@offline.command()
def build(
    out: Annotated[Path, typer.Option(help="Its folder; an earlier artefact is replaced.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    text: Annotated[
        str | None,
        typer.Option(help="Calibrate on this: text, .jsonl, .csv or hf:NAME[:SPLIT[:COLUMN]]."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(min=256, help="To calibrate on.")] = None,
    shares: Annotated[
        str | None,
        typer.Option(help="Of what the base costs a token, such as 0.9,0.7: a variant each."),
    ] = None,
    budget: Annotated[
        Literal["bytes", "latency"] | None,
        typer.Option(help="What shares are of: bytes read, or seconds on this device."),
    ] = None,
    importance: Annotated[str | None, typer.Option(help="What ranks neurons and heads.")] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Of corrections; 0: biases.")] = None,
    sequential: Annotated[
        bool, typer.Option(help="Fit each layer behind the pruned ones: better, and far slower.")
    ] = False,
    materialised: Annotated[
        bool,
        typer.Option(help="Give each variant refitted matrices: better, not shared."),
    ] = False,
    search: Annotated[int, typer.Option(min=0, help="Candidates tried for each share.")] = 0,
    keep_all: Annotated[bool, typer.Option(help="Keep variants that others beat.")] = False,
    device: Annotated[
        str | None, typer.Option(help="Compute there one layer at a time, such as on cuda.")
    ] = None,
    seed: int = 0,
) -> None:
    """Rank, cut, correct and measure variants of a model, into a folder that the server reads.

    An interrupted build goes on where it stopped.
    """
    from pruners.builder.recipe import Recipe
    from pruners.data.corpus import read_corpus
    from server.jobs.build import build_artefact

    given: dict[str, Any] = {
        "calibration_tokens": tokens,
        "shares": None if shares is None else _shares(shares),
        "budget": budget,
        "importance": importance,
        "rank": rank,
    }
    recipe = Recipe(
        search=search,
        keep_all=keep_all,
        sequential=sequential,
        materialised=materialised,
        seed=seed,
        **{name: value for name, value in given.items() if value is not None},
    )
    corpus = None if text is None else read_corpus(text)
    chosen = None if device is None else _device(device)
    artefact = build_artefact(model, out, corpus, recipe, chosen)
    typer.echo(f"{out}: {len(artefact.variants)} variants of {artefact.model_name}")


@offline.command()
def recover(
    artefact: Annotated[Path, typer.Option(help="A folder by `trimtab build`.")],
    out: Annotated[Path | None, typer.Option(help="Default: the same folder.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    variants: Annotated[str | None, typer.Option(help="Such as a,b. Default all.")] = None,
    tier: Annotated[
        Literal["norms", "residuals", "lora"],
        typer.Option(
            help="Train biases and norms; the low ranks of cut parts too; or of all projections."
        ),
    ] = "residuals",
    rank: Annotated[int, typer.Option(min=1, help="Of the low ranks.")] = 16,
    tokens: Annotated[int, typer.Option(min=4096, help="Of text to train on.")] = 200_000,
    text: Annotated[
        str | None,
        typer.Option(help="Train on this too: text, .jsonl, .csv or hf:NAME[:SPLIT[:COLUMN]]."),
    ] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate. Default by tier.")] = None,
    batch: Annotated[int, typer.Option(min=512, help="Tokens of a step.")] = 2048,
    device: Annotated[str, typer.Option(help="Such as cuda.")] = "cpu",
    seed: int = 0,
) -> None:
    """Train variants towards the base, whose weights stay as they are.

    An interrupted training goes on from its last check.
    """
    from pruners.data.corpus import read_corpus
    from pruners.distill import TrainingOptions
    from server.jobs.recover import RecoveryRequest, recover_artefact

    names = tuple(name.strip() for name in (variants or "").split(",") if name.strip())
    corpus = None if text is None else read_corpus(text)
    training = TrainingOptions(tier, rank, batch, rate, seed=seed)
    request = RecoveryRequest(names, tokens, corpus, training, _device(device))
    found = recover_artefact(model, artefact, out or artefact, request)
    for name in names or [spec.name for spec in found.variants]:
        kl = found.provenance["training"][name]["held_out_kl"]
        typer.echo(f"{name}: held-out KL {kl[0]:.3f} before, {min(kl):.3f} after")


@offline.command()
def evaluate(
    artefact: Annotated[Path, typer.Option(help="A folder by `trimtab build`.")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    text: Annotated[
        str | None,
        typer.Option(help="Measure on this; .raw is WikiText. Default: fresh text of the base."),
    ] = None,
    tasks: Annotated[
        list[Path] | None, typer.Option(help="JSONL of questions; may be given several times.")
    ] = None,
    window: Annotated[int, typer.Option(min=16, help="Tokens of a row.")] = 1024,
    limit: Annotated[int | None, typer.Option(min=16, help="Tokens of text in all.")] = None,
    task_limit: Annotated[int | None, typer.Option(min=1, help="Questions of a task.")] = None,
    kv_prompt: Annotated[
        int, typer.Option(min=32, help="Tokens of a prompt before its cache is cut.")
    ] = 512,
    timing: Annotated[bool, typer.Option(help="Time every variant on this device.")] = True,
    json: Annotated[Path | None, typer.Option(help="Write the table here too.")] = None,
) -> None:
    """Measure an artefact's variants, and write its table and a report with plots.

    An interrupted evaluation goes on where it stopped.
    """
    from rich.console import Console

    from pruners.data.corpus import read_corpus
    from pruners.evaluation.report import render_tables
    from pruners.support.files import check_file
    from server.jobs.evaluate import EvaluationPlan, evaluate_artefact

    if json is not None:
        check_file(json, artefact, *(tasks or ()), *map(Path, filter(None, (model, text))))
    corpus = None if text is None else read_corpus(text)
    plan = EvaluationPlan(corpus, tuple(tasks or ()), window, limit, task_limit, kv_prompt, timing)
    found = evaluate_artefact(model, artefact, plan)
    for table in render_tables(found):
        Console(width=160).print(table)
    if json is not None:
        found.table.save(json)
    typer.echo(f"{artefact / 'report' / 'report.md'}")


@offline.command()
def sensitivity(
    artefact: Annotated[Path, typer.Option(help="A folder by `trimtab build`.")],
    prompts: Annotated[str, typer.Option(help="Text, .jsonl, .csv or hf:NAME[:SPLIT[:COLUMN]].")],
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    limit: Annotated[int, typer.Option(min=40, help="Prompts at most.")] = 300,
    tokens: Annotated[int, typer.Option(min=8, help="Of an answer.")] = 48,
    analyzer: Annotated[
        Literal["patterns", "nltk", "spacy"], typer.Option(help="Reads prompts, as when serving.")
    ] = "patterns",
) -> None:
    """Learn from real prompts what each variant will lose on a prompt, and say how well that works.

    The server reads the result from the artefact's folder.
    """
    from rich.console import Console
    from rich.table import Table

    from pruners.data.corpus import read_corpus
    from server.jobs.sensitivity import learn_sensitivity

    corpus = read_corpus(prompts)
    found = learn_sensitivity(model, artefact, corpus, limit, tokens, analyzer)
    titles = ("variant", "predictor", "R2", "rank", "oracle's gain", "over random", "over length")
    for name, report in found.report["backends"].items():
        table = Table(title=f"{name}: cross-validated, 95 % intervals in nats per token")
        for title in titles:
            table.add_column(title, justify="right")
        for variant, judged in report.items():
            for predictor in ("all", "all+loss", "length", "rule"):
                one = judged[predictor]
                intervals = (
                    f"{low:+.4f} to {high:+.4f}"
                    for low, high in (one["over_random"], one["over_length"])
                )
                numbers = (f"{one[k]:.2f}" if k in one else "" for k in ("r2", "rho", "gain"))
                table.add_row(variant, predictor, *numbers, *intervals)
        Console(width=120).print(table)


@offline.command("lm-eval")
def lm_eval(
    tasks: Annotated[str, typer.Option(help="The harness's names, such as arc_easy,piqa.")],
    variant: Annotated[str, typer.Option(help="Of the artefact.")] = "base",
    url: Annotated[
        str | None, typer.Option(help="A running server; otherwise transformers computes.")
    ] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
    artefact: Annotated[Path | None, typer.Option(help="A folder by `trimtab build`.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions of a task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples before a question.")] = None,
    include: Annotated[Path | None, typer.Option(help="A folder of tasks of your own.")] = None,
    json: Annotated[Path | None, typer.Option(help="Write the results here too.")] = None,
) -> None:
    """Run EleutherAI's evaluation harness on the base or a variant."""
    from pruners.support.files import check_file, write_json
    from server.jobs.lm_eval import HarnessRequest, run_harness, run_harness_on_server

    names = tuple(name.strip() for name in tasks.split(",") if name.strip())
    if json is not None:
        check_file(json, *filter(None, (artefact, include, Path(model))))
    exam = HarnessRequest(names, limit, shots, include)
    if url is None:
        found = run_harness(model, artefact, variant, exam)
    else:
        found = run_harness_on_server(url.rstrip("/"), model, variant, exam)
    for task, figures in found.items():
        shown = {name: value for name, value in figures.items() if isinstance(value, float)}
        line = ", ".join(f"{name.partition(',')[0]} {value:.4f}" for name, value in shown.items())
        typer.echo(f"{variant}, {task}: {line}")
    if json is not None:
        write_json(json, found)


@offline.command()
def export(
    variant: Annotated[str, typer.Argument(help="Of the artefact.")],
    out: Annotated[Path, typer.Option(help="The model's folder; an earlier export is replaced.")],
    artefact: Annotated[Path | None, typer.Option(help="Default: the shipped one.")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = DEFAULT_MODEL,
) -> None:
    """Write a variant, corrections merged, as a smaller model for `transformers`."""
    from server.jobs.export import export_variant

    loader = export_variant(model, artefact, variant, out)
    typer.echo(f"{out}: load it with {loader}")


def _shares(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UsageError(f"--shares {text} is no list of shares such as 0.9,0.7") from error


def _device(name: str) -> "torch.device":
    import torch

    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"--device {name} cannot be used: {reason}") from error
