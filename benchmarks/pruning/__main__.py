"""What cuts cost on text, beside the field's baselines: `python -m benchmarks.pruning --text FILE`.

Perplexity over the base's (and KL, agreement) of a quarter and half of the FFN neurons and of six
layers' bytes removed, without any training, calibrated on the base's own samples. `--text` takes
WikiText-2's raw test file by its protocol, or any text.
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.pruning.cuts import depths, widths
from benchmarks.pruning.study import ORDER, Study
from benchmarks.support.results import option_parser, options_as_json, save_result
from pruners.allocation import measure_curves
from pruners.architecture import locate
from pruners.data.corpus import read_corpus
from pruners.data.rows import count_tokens, hash_rows
from pruners.evaluation.evaluate import Evaluation, evaluate
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import progress_bars
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import DEFAULT_MODEL, cache_folder, resolve_model
from server.jobs.self_generated_text import SelfGeneratedText
from telemetry.machine import describe

_ROW = 1024  # tokens


def main() -> None:
    """Run the study and print its table."""
    options = _options()
    arguments = options.parse_args()
    source = resolve_model(arguments.model)
    limit = None if arguments.windows is None else arguments.windows * arguments.window
    corpus = read_corpus(arguments.text)
    text = corpus.rows(load_tokenizer(source), arguments.window, limit)
    # `study` is raised when older checkpoints must not be used any more.
    what = {"model": str(source), "tokens": arguments.tokens, "rank": arguments.rank, "study": 2}
    folder = cache_folder() / "benchmarks"
    evaluated = Checkpoint(folder / "pruning-text", {**what, "text": hash_rows(text)})
    with progress_bars() as progress:
        study = _study(source, arguments, Checkpoint(folder / "pruning", what), progress)
        cuts = study.cuts
        if arguments.only:
            unknown = sorted(set(arguments.only) - set(cuts))
            if unknown:
                options.error(f"no cut {unknown[0]!r}; there are: {', '.join(cuts)}")
            cuts = {name: cuts[name] for name in arguments.only}
        found = evaluate(study.located, cuts, text, progress=progress, checkpoint=evaluated)
    results = _results(study, found)
    title = f"{corpus.name}: {found.tokens} predictions, windows of {arguments.window}"
    _print(title, found.base_perplexity, results)
    result = {
        "machine": describe(),
        "arguments": {**options_as_json(arguments), "text": corpus.name},
        "calibration": {"tokens": count_tokens(study.rows), "hash": hash_rows(study.rows)},
        "text": {"hash": hash_rows(text), "predictions": found.tokens},
        "base_perplexity": found.base_perplexity,
        "cuts": results,
    }
    print(f"written to {save_result(arguments.name, result, arguments.json)}")


def _options() -> argparse.ArgumentParser:
    options = option_parser(__doc__)
    options.add_argument("--text", required=True)
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--windows", type=int, default=None, help="evenly spaced; default all")
    options.add_argument("--window", type=int, default=1024)
    options.add_argument("--tokens", type=int, default=16_384, help="calibration tokens")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--name", default="pruning", help="of the result")
    options.add_argument("--only", nargs="+", help="cuts to read the text with; default all")
    return options


def _study(
    source: Path, arguments: argparse.Namespace, checkpoint: Checkpoint, progress: Progress
) -> Study:
    """Return the study with all its cuts, calibrated on text that the base wrote."""
    own = SelfGeneratedText(source, checkpoint, progress)
    # As `build` takes them, whose first rows are held out.
    rows = own.rows(8 + -(-arguments.tokens // _ROW), _ROW, seed=0)[8:]
    study = Study(locate(load_transformers(source, torch.float32)), rows, checkpoint)
    order = study.order(ORDER, progress)
    library = study.library(order, arguments.rank, progress)
    curves = measure_curves(
        study.located, order, study.selection, library.corrections, checkpoint, progress
    )
    widths(study, curves, library, progress)
    depths(study, curves, library, progress)
    return study


def _results(study: Study, found: Evaluation) -> dict[str, dict[str, float]]:
    return {
        name: {
            "touched": study.shares[name],  # bytes read, over the base's
            "perplexity": quality.perplexity,
            "ratio": quality.perplexity / found.base_perplexity,
            "kl": quality.kl,
            "agreement": quality.agreement,
        }
        for name, quality in found.quality.items()
    }


def _print(title: str, base_perplexity: float, results: dict[str, dict[str, float]]) -> None:
    table = Table(title=title)
    for column in ("cut", "bytes", "perplexity", "over the base's", "KL", "agreement"):
        table.add_column(column, justify="left" if column == "cut" else "right")
    table.add_row("base", "1", f"{base_perplexity:.2f}", "1", "0", "1")
    for name, values in results.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
