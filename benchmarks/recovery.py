"""What training wins back on text: `python -m benchmarks.recovery --text FILE`.

Three cuts of the default model with training-free corrections, then trained as `trimtab recover`
does, on the base's own text; perplexity over the base's of `--text` (WikiText-2's raw test file by
its protocol, or any text) before and after. Points that are trained together share the base's
readings.
"""

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.machine import given, parser, save
from benchmarks.pruning import LAYERS, ORDER, Study
from pruners.allocation import greedy, measured
from pruners.allocation.depth import greedy_layers
from pruners.architecture import locate
from pruners.correction import Correction
from pruners.data.corpus import read_corpus
from pruners.distill import Training, quick_dtype, train
from pruners.evaluation.evaluate import evaluate, reading
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.recovery.library import Library
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import progress_bars
from pruners.variant import Block, VariantSpec, base_spec, depth_spec
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import DEFAULT_MODEL, cache_folder, resolve_model
from server.jobs.self_generated_text import OwnText
from telemetry.machine import describe

POINTS = {"ffn-75": 0.75, "ffn-50": 0.5, "six-layers": None}
"""Shares of the neurons that are kept; None: all neurons, and six layers skipped."""
ROW = 512
CALIBRATION_ROWS = 32

Own = Mapping[Block, Correction]


def cut(study: Study, order: Order, library: Library, name: str, progress: Progress) -> VariantSpec:
    """The point's variant, chosen by KL on rows that no fit has seen."""
    located, shape, keep = study.located, study.located.shape, POINTS[name]
    if keep is None:
        biases = {b: c.bias for (b, width), c in library.corrections.items() if width == 0}

        def compute() -> tuple[int, ...]:
            return greedy_layers(located, study.selection, LAYERS, biases, progress).layers

        return depth_spec(
            shape, list(study.checkpoint.get_or_compute("layers with constants", compute))
        )
    curves = measured(
        located, order, study.selection, library.corrections, study.checkpoint, progress
    )
    neurons = [curve for curve in curves if curve.part == "mlp"]
    wanted = keep * shape.ffn * shape.layers
    return greedy(base_spec(shape), neurons, lambda spec: sum(spec.ffn), wanted)


def main() -> None:
    """Builds the points, trains them together, and reads the text before and after."""
    options = parser(__doc__)
    options.add_argument("--text", required=True)
    options.add_argument("--points", nargs="+", choices=POINTS, default=list(POINTS))
    options.add_argument("--tokens", type=int, default=200_000, help="to train on")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--rate", type=float, default=None)
    options.add_argument("--windows", type=int, default=None, help="evenly spaced; default all")
    options.add_argument("--name", default="recovery", help="of the result")
    arguments = options.parse_args()

    source = resolve_model(DEFAULT_MODEL)
    corpus = read_corpus(arguments.text)
    limit = None if arguments.windows is None else arguments.windows * 1024
    text = corpus.rows(load_tokenizer(source), 1024, limit)
    checkpoint = Checkpoint(cache_folder() / "benchmarks" / "recovery", {"rows": CALIBRATION_ROWS})
    with progress_bars() as progress:
        own_text = OwnText(source, checkpoint, progress)
        calibration = own_text.rows(CALIBRATION_ROWS, ROW, seed=0)
        held_out = own_text.rows(8, ROW, seed=5)
        rows = own_text.rows(-(-arguments.tokens // ROW), ROW, seed=100)
        del own_text
        located = locate(load_transformers(source, torch.float32))
        study = Study(located, calibration, checkpoint)
        order = study.order(ORDER, progress)
        library = study.library(order, arguments.rank, progress)
        specs = {name: cut(study, order, library, name, progress) for name in arguments.points}
        named = [VariantSpec(name, spec.kv_groups, spec.ffn) for name, spec in specs.items()]
        before: dict[str, Own] = {spec.name: library.of(spec) for spec in named}
        started = time.monotonic()
        state = checkpoint.file_path(f"{'-'.join(specs)}-{arguments.tokens}.safetensors")
        dtype = quick_dtype(torch.device("cpu"))
        trained = train(
            locate(load_transformers(source, dtype)), named, order, before, rows, held_out,
            Training("lora", arguments.rank, rate=arguments.rate), state, progress,
        )  # fmt: skip
        minutes = (time.monotonic() - started) / 60
        after = {name: one.corrections for name, one in trained.items()}
        readers = {
            f"{spec.name} {when}": reading(
                located, partial(apply_mask, located, spec, order, own[spec.name])
            )
            for spec in named
            for when, own in (("before", before), ("after", after))
        }
        found = evaluate(located, readers, text, progress=progress)

    base = base_spec(located.shape).parameters(located.shape)
    table = Table(
        title=f"{corpus.name}: {found.tokens} predictions, base {found.base_perplexity:.2f}"
    )
    titles = (
        "point",
        "bytes",
        "over the base's, before",
        "after",
        "KL before",
        "after",
        "held-out KL",
    )
    for title in titles:
        table.add_column(title)
    results: dict[str, Any] = {}
    for spec in named:
        first, last = (found.quality[f"{spec.name} {when}"] for when in ("before", "after"))
        numbers = sum(t.numel() for c in after[spec.name].values() for t in c.tensors())
        results[spec.name] = {
            "shared_parameters": spec.parameters(located.shape) / base,
            "own_parameters": numbers / base,
            "ratio": [q.perplexity / found.base_perplexity for q in (first, last)],
            "kl": [first.kl, last.kl],
            "agreement": [first.agreement, last.agreement],
            "held_out_kl": trained[spec.name].history,
        }
        ratios, kls = results[spec.name]["ratio"], results[spec.name]["kl"]
        history = " ".join(f"{kl:.3f}" for kl in trained[spec.name].history)
        cells = (results[spec.name]["shared_parameters"], *ratios, *kls)
        table.add_row(spec.name, *(f"{cell:.3f}" for cell in cells), history)
    Console(width=140).print(table)
    result = {
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "training_minutes": minutes,
        "training_dtype": str(dtype),
        "arguments": {**given(arguments), "text": corpus.name},
        "base_perplexity": found.base_perplexity,
        "predictions": found.tokens,
        "points": results,
    }
    print(f"written to {save(arguments.name, result, arguments.json)}")


if __name__ == "__main__":
    main()
