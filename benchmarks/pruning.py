"""What cuts cost on text, beside the field's baselines: `python -m benchmarks.pruning --text FILE`.

Perplexity over the base's (and KL, agreement) of a quarter and half of the FFN neurons and of six
layers' bytes removed, without any training, calibrated on the base's own samples. `--text` takes
WikiText-2's raw test file by its protocol, or any text.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.machine import given, parser, save
from pruners.allocation import Curve, ffn_levels, greedy, kv_levels, measured, search
from pruners.allocation.depth import block_spec, greedy_blocks, greedy_layers
from pruners.architecture import LocatedModel, Shape, locate
from pruners.correction import from_tensors, to_tensors
from pruners.data.corpus import read_corpus
from pruners.data.rows import count_tokens, hash_rows, held_out_rows, sample_rows
from pruners.evaluation.evaluate import Reader, evaluate, reading
from pruners.importance import BLOCK_ORDERS, LAYER_ORDERS, make_scorer
from pruners.realization.mask import apply_mask
from pruners.realization.order import Order
from pruners.recovery import Recipe as Fit
from pruners.recovery import recover
from pruners.recovery.library import Library, library_from, make_library
from pruners.support.checkpoint import Checkpoint
from pruners.support.progress import progress_bars
from pruners.variant import Block, VariantSpec, base_spec, depth_spec, width_spec
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import DEFAULT_MODEL, cache_folder, resolve_model
from server.jobs.self_generated_text import OwnText
from telemetry.machine import describe

BASELINES = ("random", "l2", "mean-activation", "wanda", "flap")
ORDER = "wanda"
"""What our own cuts rank units by."""
LAYERS = 6
ROW = 1024
TRIALS = 12
"""Candidates for the widths of each share of neurons, plain greedy among them."""


class Study:
    """The base, its calibration, and every cut as something that reads."""

    def __init__(
        self, located: LocatedModel, rows: list[torch.Tensor], checkpoint: Checkpoint
    ) -> None:
        self.located = located
        self.rows = rows
        self.checkpoint = checkpoint
        self.selection = sample_rows(held_out_rows(rows), 2048, seed=1)
        self.scored = sample_rows(rows, 8192, seed=2)
        self.cuts: dict[str, Reader] = {}
        self.shares: dict[str, float] = {}

    def add(
        self, name: str, spec: VariantSpec, order: Order, own: Mapping[Block, Any] | None = None
    ) -> None:
        """One line of the table."""
        shape = self.located.shape
        numbers = sum(t.numel() for c in (own or {}).values() for t in c.tensors())
        touched = spec.parameters(shape) + numbers
        self.shares[name] = touched / base_spec(shape).parameters(shape)
        self.cuts[name] = reading(self.located, partial(apply_mask, self.located, spec, order, own))

    def order(self, name: str, progress: Progress) -> Order:
        """Units as a scorer puts them."""

        def compute() -> dict[str, torch.Tensor]:
            rows = self.rows if name == ORDER else self.scored
            found = make_scorer(name)(self.located, rows, progress).order()
            return {"ffn": found.ffn, "kv": found.kv}

        return Order(**self.checkpoint.get_or_compute_tensors(f"order {name}", compute))

    def library(self, order: Order, rank: int, progress: Progress) -> Library:
        """Shared corrections of every block and width."""
        shape = self.located.shape

        def compute() -> dict[str, torch.Tensor]:
            widths = (kv_levels(shape)[1:], ffn_levels(shape)[1:])
            made = make_library(self.located, order, self.rows, *widths, rank, progress)
            return made.to_tensors()

        return library_from(self.checkpoint.get_or_compute_tensors(f"library {rank}", compute))

    def by_kl(
        self, order: Order, curves: list[Curve], library: Library, neurons: float, bars_: Progress
    ) -> VariantSpec:
        """Widths that keep this many neurons in all, chosen on the selection rows."""

        def loss(spec: VariantSpec) -> float:
            reader = reading(
                self.located, partial(apply_mask, self.located, spec, order, library.of(spec))
            )
            return evaluate(self.located, {"it": reader}, self.selection).quality["it"].kl

        start = base_spec(self.located.shape)
        path = self.checkpoint.file_path(f"widths-{neurons:.0f}.db")
        return search(
            start, curves, lambda spec: sum(spec.ffn), neurons, loss, TRIALS,
            storage=f"sqlite:///{path}", progress=bars_,
        ).spec  # fmt: skip


def widths(study: Study, curves: list[Curve], library: Library, progress: Progress) -> None:
    """A quarter and half of the neurons gone."""
    located, shape = study.located, study.located.shape
    orders = {name: study.order(name, progress) for name in BASELINES}
    best = orders[ORDER]
    neurons = [curve for curve in curves if curve.part == "mlp"]
    ours: dict[str, VariantSpec] = {}
    for keep in (0.75, 0.5):
        title = f"FFN -{1 - keep:.0%}"
        uniform = width_spec(shape, keep)
        for name, order in orders.items():
            study.add(f"{title} {name}", uniform, order)
        ours[f"{title} uniform"] = uniform
        wanted = keep * shape.ffn * shape.layers
        ours[f"{title} by KL"] = study.by_kl(best, neurons, library, wanted, progress)
    specs = list(ours.values())

    def compute() -> dict[str, torch.Tensor]:
        found = recover(located, specs, best, study.rows, Fit(materialised=True), progress)
        return {
            f"{title}/{name}": tensor
            for title, refit in zip(ours, found, strict=True)
            for name, tensor in to_tensors(refit.corrections).items()
        }

    tensors = study.checkpoint.get_or_compute_tensors("refits", compute)
    for title, spec in ours.items():
        refit = {n.removeprefix(f"{title}/"): t for n, t in tensors.items() if n.startswith(title)}
        if "uniform" not in title:
            study.add(title, spec, best)
        study.add(f"{title}, shared", spec, best, library.of(spec))
        study.add(f"{title}, materialised", spec, best, from_tensors(refit))


def depths(study: Study, curves: list[Curve], library: Library, progress: Progress) -> None:
    """The bytes of six layers gone, as layers, sub-blocks or cuts of every kind."""
    located, shape, rows = study.located, study.located.shape, study.selection
    order = study.order(ORDER, progress)
    biases = {b: c.bias for (b, width), c in library.corrections.items() if width == 0}
    gone = base_spec(shape).body_parameters(shape) * LAYERS // shape.layers
    note = study.checkpoint.value
    greedily = note("layers", lambda: greedy_layers(located, rows, LAYERS, None, progress).layers)
    layers = {name: find(located, study.scored, progress) for name, find in LAYER_ORDERS.items()}
    for name, found in {"greedy KL": greedily, **layers}.items():
        study.add(f"{LAYERS} layers {name}", depth_spec(shape, list(found[:LAYERS])), order)
    chosen = note("blocks", lambda: greedy_blocks(located, rows, gone, biases, progress).blocks)
    # The last block takes more than six layers hold: the bytes lie between these two.
    for name, blocks in (("", chosen), (", one fewer", chosen[:-1])):
        spec = block_spec(shape, [Block(*block) for block in blocks])
        study.add(f"sub-blocks greedy KL, constants{name}", spec, order, library.of(spec))
    for name, find in BLOCK_ORDERS.items():
        blocks = find(located, study.scored, progress)
        study.add(f"sub-blocks {name}", _blocks_of(shape, blocks, gone), order)
    base = base_spec(shape)
    left = base.body_parameters(shape) - gone
    mixed = greedy(base, curves, lambda s: s.body_parameters(shape), left)
    study.add("every kind by KL, shared", mixed, order, library.of(mixed))


def _blocks_of(shape: Shape, blocks: Sequence[Block], gone: int) -> VariantSpec:
    """The first blocks that hold as many parameters."""
    base = base_spec(shape)
    for number in range(1, len(blocks) + 1):
        spec = block_spec(shape, blocks[:number])
        if base.body_parameters(shape) - spec.body_parameters(shape) >= gone:
            return spec
    return block_spec(shape, blocks)


def main() -> None:
    """Runs the study and prints its table."""
    options = parser(__doc__)
    options.add_argument("--text", required=True)
    options.add_argument("--model", default=DEFAULT_MODEL)
    options.add_argument("--windows", type=int, default=None, help="evenly spaced; default all")
    options.add_argument("--window", type=int, default=1024)
    options.add_argument("--tokens", type=int, default=16_384, help="calibration tokens")
    options.add_argument("--rank", type=int, default=16)
    options.add_argument("--name", default="pruning", help="of the result")
    options.add_argument("--only", nargs="+", help="cuts to read the text with; default all")
    arguments = options.parse_args()

    source = resolve_model(arguments.model)
    limit = None if arguments.windows is None else arguments.windows * arguments.window
    corpus = read_corpus(arguments.text)
    text = corpus.rows(load_tokenizer(source), arguments.window, limit)
    what = {"model": str(source), "tokens": arguments.tokens, "rank": arguments.rank, "study": 2}
    folder = cache_folder() / "benchmarks"
    checkpoint = Checkpoint(folder / "pruning", what)
    read = Checkpoint(folder / "pruning-text", {**what, "text": hash_rows(text)})
    with progress_bars() as progress:
        own = OwnText(source, checkpoint, progress)
        # As `build` takes them, whose first rows are held out.
        rows = own.rows(8 + -(-arguments.tokens // ROW), ROW, seed=0)[8:]
        study = Study(locate(load_transformers(source, torch.float32)), rows, checkpoint)
        order = study.order(ORDER, progress)
        library = study.library(order, arguments.rank, progress)
        curves = measured(
            study.located, order, study.selection, library.corrections, checkpoint, progress
        )
        widths(study, curves, library, progress)
        depths(study, curves, library, progress)
        cuts = study.cuts
        if arguments.only:
            unknown = sorted(set(arguments.only) - set(cuts))
            if unknown:
                options.error(f"no cut {unknown[0]!r}; there are: {', '.join(cuts)}")
            cuts = {name: cuts[name] for name in arguments.only}
        found = evaluate(study.located, cuts, text, progress=progress, checkpoint=read)

    table = Table(title=f"{corpus.name}: {found.tokens} predictions, windows of {arguments.window}")
    for title in ("cut", "bytes", "perplexity", "over the base's", "KL", "agreement"):
        table.add_column(title, justify="left" if title == "cut" else "right")
    table.add_row("base", "1", f"{found.base_perplexity:.2f}", "1", "0", "1")
    results = {}
    for name, quality in found.quality.items():
        ratio, touched = quality.perplexity / found.base_perplexity, study.shares[name]
        cells = (touched, quality.perplexity, ratio, quality.kl, quality.agreement)
        table.add_row(name, *(f"{cell:.3f}" for cell in cells))
        keys = ("touched", "perplexity", "ratio", "kl", "agreement")
        results[name] = dict(zip(keys, cells, strict=True))
    Console(width=120).print(table)
    result = {
        "machine": describe(),
        "arguments": {**given(arguments), "text": corpus.name},
        "calibration": {"tokens": count_tokens(rows), "hash": hash_rows(rows)},
        "text": {"hash": hash_rows(text), "predictions": found.tokens},
        "base_perplexity": found.base_perplexity,
        "cuts": results,
    }
    print(f"written to {save(arguments.name, result, arguments.json)}")


if __name__ == "__main__":
    main()
