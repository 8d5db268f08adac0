"""What training wins back on text: `python -m benchmarks.recovery --text FILE`.

Three cuts of the default model with training-free corrections, then trained as `trimtab recover`
does, on the base's own text; perplexity over the base's of `--text` (WikiText-2's raw test file by
its protocol, or any text) before and after. Points that are trained together share the base's
readings.
"""

import argparse
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.pruning.study import LAYERS, ORDER, Study
from benchmarks.support.results import option_parser, options_as_json, save_result
from pruners.allocation import AllocationProblem, allocate_greedily, measure_curves
from pruners.allocation.depth import order_layers_to_skip
from pruners.architecture import LocatedModel, locate
from pruners.correction import Correction
from pruners.data.corpus import read_corpus
from pruners.distill import TrainingOptions, TrainingRows, fast_dtype, train
from pruners.evaluation.evaluate import Evaluation, evaluate, variant_forward
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.realization.variant_set import VariantSet
from pruners.recovery.library import CorrectionLibrary
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import progress_bars
from pruners.variant import Block, VariantSpec, base_spec, depth_spec
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import DEFAULT_MODEL, cache_folder, resolve_model
from server.jobs.self_generated_text import SelfGeneratedText
from telemetry.machine import describe

POINTS = {"ffn-75": 0.75, "ffn-50": 0.5, "six-layers": None}
"""Shares of the neurons that are kept; None: all neurons, and six layers skipped."""
ROW = 512
CALIBRATION_ROWS = 32

Corrections = Mapping[Block, Correction]


@dataclass(frozen=True, slots=True)
class TrainedPoints:
    """The variants that were trained, their corrections before and after, and what it took.

    `history` holds the KL on held-out rows after each stage; `minutes` is the time of training.
    """

    located: LocatedModel
    order: Order
    specs: list[VariantSpec]
    before: dict[str, Corrections]
    after: dict[str, Corrections]
    history: dict[str, list[float]]
    minutes: float


def cut(
    study: Study, order: Order, library: CorrectionLibrary, name: str, progress: Progress
) -> VariantSpec:
    """Return the variant of this point, chosen by KL on rows that no fit has seen."""
    located, shape, keep = study.located, study.located.shape, POINTS[name]
    if keep is None:
        biases = library.biases_of_skipped()

        def compute() -> tuple[int, ...]:
            return order_layers_to_skip(located, study.selection, LAYERS, biases, progress).layers

        return depth_spec(
            shape, list(study.checkpoint.get_or_compute("layers with constants", compute))
        )
    curves = measure_curves(
        located, order, study.selection, library.corrections, study.checkpoint, progress
    )
    neurons = [curve for curve in curves if curve.part == "mlp"]
    wanted = keep * shape.ffn * shape.layers
    return allocate_greedily(
        AllocationProblem(base_spec(shape), neurons, lambda spec: sum(spec.ffn), wanted)
    )


def main() -> None:
    """Build the points, train them together, and read the text before and after."""
    arguments = _options().parse_args()
    source = resolve_model(DEFAULT_MODEL)
    corpus = read_corpus(arguments.text)
    limit = None if arguments.windows is None else arguments.windows * 1024
    text = corpus.rows(load_tokenizer(source), 1024, limit)
    dtype = fast_dtype(torch.device("cpu"))
    with progress_bars() as progress:
        trained = _train(source, arguments, dtype, progress)
        found = _evaluate(trained, text, progress)
    results = _results(trained, found)
    _print(corpus.name, found, results)
    result = {
        "machine": describe(),
        "threads": torch.get_num_threads(),
        "training_minutes": trained.minutes,
        "training_dtype": str(dtype),
        "arguments": {**options_as_json(arguments), "text": corpus.name},
        "base_perplexity": found.base_perplexity,
        "predictions": found.tokens,
        "points": results,
    }
    print(f"written to {save_result(arguments.name, result, arguments.json)}")


def _options() -> argparse.ArgumentParser:
    options = option_parser(__doc__)
    options.add_argument("--text", required=True)
    options.add_argument("--points", nargs="+", choices=POINTS, default=list(POINTS))
    options.add_argument("--tokens", type=int, default=200_000, help="to train on")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--rate", type=float, default=None)
    options.add_argument("--windows", type=int, default=None, help="evenly spaced; default all")
    options.add_argument("--name", default="recovery", help="of the result")
    return options


def _train(
    source: Path, arguments: argparse.Namespace, dtype: torch.dtype, progress: Progress
) -> TrainedPoints:
    """Build the points on text that the base wrote, and train their corrections together."""
    checkpoint = Checkpoint(cache_folder() / "benchmarks" / "recovery", {"rows": CALIBRATION_ROWS})
    own_text = SelfGeneratedText(source, checkpoint, progress)
    calibration = own_text.rows(CALIBRATION_ROWS, ROW, seed=0)
    held_out = own_text.rows(8, ROW, seed=5)
    rows = own_text.rows(-(-arguments.tokens // ROW), ROW, seed=100)
    del own_text  # and its model
    located = locate(load_transformers(source, torch.float32))
    study = Study(located, calibration, checkpoint)
    order = study.order(ORDER, progress)
    library = study.library(order, arguments.rank, progress)
    specs = {name: cut(study, order, library, name, progress) for name in arguments.points}
    named = [VariantSpec(name, spec.kv_groups, spec.ffn) for name, spec in specs.items()]
    before: dict[str, Corrections] = {spec.name: library.of(spec) for spec in named}
    started = time.monotonic()
    state = checkpoint.file_path(f"{'-'.join(specs)}-{arguments.tokens}.safetensors")
    trained = train(
        locate(load_transformers(source, dtype)), VariantSet(order, named, before),
        TrainingRows(rows, held_out),
        TrainingOptions("lora", arguments.rank, rate=arguments.rate), state, progress,
    )  # fmt: skip
    return TrainedPoints(
        located, order, named, before,
        after={name: one.corrections for name, one in trained.items()},
        history={name: one.history for name, one in trained.items()},
        minutes=(time.monotonic() - started) / 60,
    )  # fmt: skip


def _evaluate(trained: TrainedPoints, text: list[torch.Tensor], progress: Progress) -> Evaluation:
    """Read the text with each point, before and after training."""
    located, order = trained.located, trained.order
    readers = {
        f"{spec.name} {when}": variant_forward(
            located, partial(apply_mask, located, spec, order, corrections[spec.name])
        )
        for spec in trained.specs
        for when, corrections in (("before", trained.before), ("after", trained.after))
    }
    return evaluate(located, readers, text, progress=progress)


def _results(trained: TrainedPoints, found: Evaluation) -> dict[str, dict[str, Any]]:
    shape = trained.located.shape
    base = base_spec(shape).parameters(shape)
    results: dict[str, dict[str, Any]] = {}
    for spec in trained.specs:
        before, after = (found.quality[f"{spec.name} {when}"] for when in ("before", "after"))
        corrections = trained.after[spec.name].values()
        parameters = sum(t.numel() for one in corrections for t in one.tensors())
        results[spec.name] = {
            "shared_parameters": spec.parameters(shape) / base,
            "own_parameters": parameters / base,
            "ratio": [q.perplexity / found.base_perplexity for q in (before, after)],
            "kl": [before.kl, after.kl],
            "agreement": [before.agreement, after.agreement],
            "held_out_kl": trained.history[spec.name],
        }
    return results


def _print(name: str, found: Evaluation, results: dict[str, dict[str, Any]]) -> None:
    table = Table(title=f"{name}: {found.tokens} predictions, base {found.base_perplexity:.2f}")
    for title in (
        "point", "bytes", "over the base's, before", "after", "KL before", "after", "held-out KL",
    ):  # fmt: skip
        table.add_column(title)
    for point, values in results.items():
        cells = (values["shared_parameters"], *values["ratio"], *values["kl"])
        history = " ".join(f"{kl:.3f}" for kl in values["held_out_kl"])
        table.add_row(point, *(f"{cell:.3f}" for cell in cells), history)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
