"""What KV budgets lose in long contexts: `python -m benchmarks.kv_budgets --text FILE`.

KL to the base, nats per token, of the tokens behind prompts of `--prompt` tokens, with 95 %
intervals over rows of the text: tokens evicted by each scorer, as the engine evicts them, and pages
selected for each query, which forget nothing. With `--readers` also each reader of the shipped
artefact alone, and with each budget: whether the two losses add up.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from statistics import fmean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.support.results import option_parser, options_as_json, save_result
from pruners.architecture import LocatedModel, locate
from pruners.artefact.folder import Artefact, load_artefact
from pruners.data.corpus import read_corpus
from pruners.data.rows import hash_rows
from pruners.evaluation.evaluate import VariantForward, evaluate
from pruners.kv import KV_SCORERS, make_eviction
from pruners.kv.page_selection import PageSelection
from pruners.kv.pages import forward_with_pages
from pruners.kv.transformers_cache import PromptReading, forward_with_eviction, read_in_full
from pruners.reading.reader import token_kinds
from pruners.reading.realize import read_by
from pruners.support.progress import progress_bars, track
from server.engine.loading.artefact_lookup import shipped_artefact
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import DEFAULT_MODEL, resolve_model
from telemetry.machine import describe

PAGES = "pages"
"""The method that selects pages for each query."""


def budget_forwards(
    located: LocatedModel,
    methods: Sequence[str],
    budgets: Sequence[int],
    prompt: int,
    readings: Mapping[str, PromptReading],
) -> dict[str, VariantForward]:
    """Return a forward pass for each method, budget and reading, by name such as `snap 512`.

    `readings` are by name; that of reading in full is "". Each other one also comes alone.
    """
    found: dict[str, VariantForward] = {}
    for reader, reading in readings.items():
        if reader:  # with room for every token
            everything = make_eviction(located.context, "streaming")
            found[reader] = partial(
                forward_with_eviction, located, prompt=prompt, eviction=everything, reading=reading
            )
        for method in methods:
            for budget in budgets:
                found[f"{reader} {method} {budget}".strip()] = (
                    partial(
                        forward_with_pages,
                        located,
                        prompt=prompt,
                        selection=PageSelection(budget),
                        reading=reading,
                    )
                    if method == PAGES
                    else partial(
                        forward_with_eviction,
                        located,
                        prompt=prompt,
                        eviction=make_eviction(budget, method),
                        reading=reading,
                    )
                )
    return found


def reader_readings(
    located: LocatedModel,
    tokenizer: PreTrainedTokenizerBase,
    artefact: Artefact,
    names: Sequence[str],
) -> dict[str, PromptReading]:
    """Return how an artefact's readers of these names read, and "" for reading in full."""
    kinds = token_kinds(tokenizer, located.shape.vocab)

    def reading(name: str, prompts: Tensor) -> AbstractContextManager[object]:
        reader = artefact.readers[name]
        lengths = torch.full((len(prompts),), prompts.shape[1])
        return read_by(located, reader, artefact.maps[reader.depth], lengths, prompts, kinds)

    return {"": read_in_full, **{name: partial(reading, name) for name in names}}


def compare_budgets(
    located: LocatedModel,
    forwards: Mapping[str, VariantForward],
    rows: Sequence[Tensor],
    prompt: int,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """Return the mean KL, half its 95 % interval over rows, and the agreement, by name."""
    losses: dict[str, list[tuple[float, float]]] = {name: [] for name in forwards}
    for row in track(rows, "Reading rows", progress):
        for name, one in evaluate(located, forwards, [row], prompt).quality.items():
            losses[name].append((one.kl, one.agreement))
    return {name: _summary(found) for name, found in losses.items()}


def _summary(found: Sequence[tuple[float, float]]) -> dict[str, float]:
    values = [kl for kl, _ in found]
    return {
        "kl": fmean(values),
        "half_width": 1.96 * stdev(values) / math.sqrt(len(values)),
        "agreement": fmean(agreement for _, agreement in found),
    }


def main() -> None:
    """Compare budgets on rows of a text and print the table."""
    arguments = _options().parse_args()
    source = resolve_model(DEFAULT_MODEL)
    window = arguments.prompt + arguments.tokens
    corpus = read_corpus(arguments.text)
    tokenizer = load_tokenizer(source)
    rows = corpus.rows(tokenizer, window, arguments.rows * window)
    rows = [row for row in rows if len(row) == window]
    if len(rows) < 2:
        raise SystemExit(f"{corpus.name} has no two rows of {window} tokens")
    located = locate(load_transformers(source, torch.float32))
    folder = shipped_artefact(DEFAULT_MODEL)
    assert folder is not None
    readings = reader_readings(located, tokenizer, load_artefact(folder), arguments.readers)
    forwards = budget_forwards(
        located, arguments.methods, arguments.budgets, arguments.prompt, readings
    )
    with progress_bars() as progress:
        found = compare_budgets(located, forwards, rows, arguments.prompt, progress)
    table = Table(title=f"{corpus.name}: {len(rows)} rows, {arguments.prompt} tokens cached")
    for column in ("budget", "KL", "agreement"):
        table.add_column(column, justify="right")
    for name, one in found.items():
        table.add_row(name, f"{one['kl']:.4f} ±{one['half_width']:.4f}", f"{one['agreement']:.3f}")
    Console().print(table)
    result: dict[str, Any] = {
        "machine": describe(),
        "arguments": {**options_as_json(arguments), "text": corpus.name},
        "text": {"hash": hash_rows(rows), "rows": len(rows)},
        "budgets": found,
    }
    name = f"kv-budgets-{arguments.prompt}{'-readers' if arguments.readers else ''}"
    print(f"written to {save_result(name, result, arguments.json)}")


def _options() -> argparse.ArgumentParser:
    options = option_parser(__doc__)
    options.add_argument("--text", required=True)
    options.add_argument("--prompt", type=int, default=2000)
    options.add_argument("--tokens", type=int, default=96, help="that are predicted behind it")
    options.add_argument("--rows", type=int, default=6)
    options.add_argument("--budgets", type=int, nargs="+", default=[256, 512, 640, 1024])
    options.add_argument("--readers", nargs="*", default=[], help="such as read-67")
    options.add_argument(
        "--methods",
        nargs="+",
        choices=[*KV_SCORERS, PAGES],
        default=["streaming", "snap", "expected-attention", PAGES],
    )
    return options


if __name__ == "__main__":
    main()
