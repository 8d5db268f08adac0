"""The commands that make variants and readers: build, readers, recover and export."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from server.cli.options import (
    PROMPTS_HELP,
    TEXT_HELP,
    ArtefactFolder,
    Model,
    OptionalArtefactFolder,
    Readers,
    ReaderTokens,
    Seed,
    UsageError,
    parse_device,
    parse_names,
    parse_readers,
    parse_shares,
)
from server.engine.loading.source import DEFAULT_MODEL

app = typer.Typer()

SCORER_NAMES = (
    "random", "l1", "l2", "mean-activation", "activation-variance", "wanda", "flap", "taylor",
    "least-squares", "mean-query", "attention-entropy",
)  # fmt: skip
"""The names of `pruners.importance.SCORERS`, which cannot be imported without PyTorch."""


@app.command()
def build(
    out: Annotated[
        Path, typer.Option(help="Folder to write. An earlier artefact in it is replaced.")
    ],
    model: Model = DEFAULT_MODEL,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to calibrate on. Without: text that the model itself writes. " + TEXT_HELP
        ),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=256, help="Tokens to calibrate on. Without: 16384.")
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(
            help="One variant for each share of the cost of a token by the base, such as 0.9,0.7. "
            "Without: 0.96,0.92,0.88,0.8,0.7,0.6,0.5."
        ),
    ] = None,
    budget: Annotated[
        Literal["bytes", "latency"] | None,
        typer.Option(
            help="The cost that the shares are of: bytes (that are read) or latency (seconds, "
            "measured on this device). Without: bytes."
        ),
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            help=f"What ranks neurons and heads: {', '.join(SCORER_NAMES)}. Without: wanda."
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=0, help="Rank of the corrections; 0 gives biases alone. Without: 16."),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(help="Fit each layer to what the pruned ones before it give. Slow, better."),
    ] = False,
    materialised: Annotated[
        bool,
        typer.Option(help="Give each variant refitted matrices of its own. Better, not shared."),
    ] = False,
    search: Annotated[
        int, typer.Option(min=0, help="Candidates to search for each share; 0 takes the first.")
    ] = 0,
    keep_all: Annotated[
        bool, typer.Option(help="Keep variants that cost more and lose more than others, too.")
    ] = False,
    readers: Readers = None,
    reader_tokens: ReaderTokens = None,
    device: Annotated[
        str | None,
        typer.Option(help="Device that computes one layer at a time, such as cuda. Without: cpu."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Make variants and readers of a model and measure them, into a folder that the server reads.

    An interrupted build goes on where it stopped.
    """
    from pruners.builder.recipe import Recipe
    from pruners.data.corpus import read_corpus
    from server.jobs.build import build_artefact

    given: dict[str, Any] = {
        "calibration_tokens": tokens,
        "shares": None if shares is None else parse_shares(shares),
        "budget": budget,
        "importance": importance,
        "rank": rank,
        "readers": None if readers is None else parse_readers(readers),
        "reader_tokens": reader_tokens,
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
    layer_device = None if device is None else parse_device(device)
    artefact = build_artefact(model, out, corpus, recipe, layer_device)
    typer.echo(
        f"{out}: {len(artefact.variants)} variants and {len(artefact.readers)} readers of "
        f"{artefact.model_name}"
    )


@app.command("readers")
def fit_readers(
    artefact: ArtefactFolder,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Without: the artefact's own.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    readers: Readers = None,
    tokens: ReaderTokens = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to fit on. Without: text that the model itself writes. " + TEXT_HELP
        ),
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option(
            help="Prompts that the base answers, to fit on in place of text and of --tokens. The "
            f"first quarter, 96 at most, is held out to measure on. {PROMPTS_HELP}"
        ),
    ] = None,
    prompt_limit: Annotated[
        int | None, typer.Option(min=8, help="Largest number of prompts. Without: 1000.")
    ] = None,
    distil: Annotated[
        int,
        typer.Option(
            min=0,
            help="How often the maps are then trained on the text or the answers, by "
            "KL(base || reader).",
        ),
    ] = 0,
    seed: Seed = 0,
) -> None:
    """Fit and measure the readers of an artefact, in place of those that it has.

    An interrupted call goes on where it stopped.
    """
    from pruners.data.corpus import read_corpus
    from server.jobs.readers import ReadersRequest, replace_readers

    if prompts is not None and (text is not None or tokens is not None):
        raise UsageError("--prompts takes the place of --text and --tokens; give one of them")
    if prompts is None and prompt_limit is not None:
        raise UsageError("--prompt-limit is for --prompts; for text give --tokens")
    given: dict[str, Any] = {
        "plans": None if readers is None else parse_readers(readers),
        "tokens": tokens,
        "corpus": None if text is None else read_corpus(text),
        "prompts": None if prompts is None else read_corpus(prompts),
        "prompt_limit": prompt_limit,
    }
    request = ReadersRequest(
        seed=seed,
        epochs=distil,
        **{name: value for name, value in given.items() if value is not None},
    )
    made = replace_readers(model, artefact, out or artefact, request)
    for name, quality in made.table.reader_quality.items():
        cost, whole = made.table.reader_cost[name], quality["all"]
        typer.echo(
            f"{name}: {cost.share:.2f} of the reading, KL {whole.kl:.3f} ±{whole.half_width:.3f}"
        )


@app.command()
def recover(
    artefact: ArtefactFolder,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. Without: the artefact's own.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    variants: Annotated[
        str | None, typer.Option(help="Variants to train, such as a,b. Without: all.")
    ] = None,
    tier: Annotated[
        Literal["norms", "residuals", "lora"],
        typer.Option(
            help="What is trained: norms (and biases), residuals (also the low ranks of the parts "
            "that were cut) or lora (also low ranks of all projections)."
        ),
    ] = "residuals",
    rank: Annotated[int, typer.Option(min=1, help="Rank of the trained low ranks.")] = 16,
    tokens: Annotated[int, typer.Option(min=4096, help="Tokens to train on.")] = 200_000,
    text: Annotated[
        str | None,
        typer.Option(
            help="Text to train on, half and half with text that the base writes. " + TEXT_HELP
        ),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Highest learning rate. Without: one that fits the tier.")
    ] = None,
    batch: Annotated[int, typer.Option(min=512, help="Tokens of one training step.")] = 2048,
    device: Annotated[str, typer.Option(help="Device that trains, such as cpu or cuda.")] = "cpu",
    seed: Seed = 0,
) -> None:
    """Train the corrections of variants towards the base, whose weights do not change.

    An interrupted training goes on from its last check.
    """
    from pruners.data.corpus import read_corpus
    from pruners.distill import TrainingOptions
    from server.jobs.recover import RecoveryRequest, recover_artefact

    names = parse_names(variants)
    corpus = None if text is None else read_corpus(text)
    training = TrainingOptions(tier, rank, batch, rate, seed=seed)
    request = RecoveryRequest(names, tokens, corpus, training, parse_device(device))
    recovered = recover_artefact(model, artefact, out or artefact, request)
    for name in names or [spec.name for spec in recovered.variants]:
        kl = recovered.provenance["training"][name]["held_out_kl"]
        typer.echo(f"{name}: held-out KL {kl[0]:.3f} before, {min(kl):.3f} after")


@app.command()
def export(
    variant: Annotated[str, typer.Argument(help="Name of the variant.")],
    out: Annotated[
        Path, typer.Option(help="Folder to write. An earlier export in it is replaced.")
    ],
    artefact: OptionalArtefactFolder = None,
    model: Model = DEFAULT_MODEL,
) -> None:
    """Write a variant, with its corrections merged, as a smaller model for `transformers`."""
    from server.jobs.export import export_variant

    loader = export_variant(model, artefact, variant, out)
    typer.echo(f"{out}: load it with {loader}")
