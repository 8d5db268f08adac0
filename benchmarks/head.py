"""Draws of the next token, with the whole head and with a coarse copy: `python -m benchmarks.head`.

Everything in one run and in turn, on random heads of the shapes of two models. Prints the
milliseconds of a call by rows and kind of draw: with the whole head; screened, where a coarse copy
shows which logits need to be computed; and, for what a request needs all logits for, these and the
choice by PyTorch. The hidden states are such that about as many tokens are likely as in text.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.support.packed_copies import copies_of, timed
from benchmarks.support.peers import interleaved, medians
from benchmarks.support.results import option_parser, save_result, spread
from server.engine.backends.native.head_screening import HeadScreen, build_head_screen
from server.engine.backends.native.library import NativeEngine
from server.engine.backends.native.model import head_screen_struct, matrix_struct
from server.engine.backends.native.packing import Codes, PackedMatrix, pack, quantise
from server.engine.draw import Draw, choose, key_of
from telemetry.machine import describe

HEADS = {"SmolLM2 135M": (49152, 576), "Gemma 3 270M": (262144, 640)}  # vocabulary, hidden size
ROWS = (1, 4, 8, 32)
DRAWS = {
    "likeliest": Draw(),
    "sampled": Draw(1.0),
    "top-k 64, top-p .95": Draw(1.0, top_k=64, top_p=0.95),
    "top-p .9": Draw(1.0, top_p=0.9),
}
WAYS = ("whole", "screened", "all logits")

Run = Callable[[], float]
"""A measurement: returns the mean seconds of a call."""
Heads = Sequence[tuple[PackedMatrix, HeadScreen | None]]
"""Copies of one head, with their coarse copies if they have any."""


def main() -> None:
    """Run the benchmark and print its tables."""
    options = option_parser(__doc__)
    options.add_argument("--repeats", type=int, default=9)
    arguments = options.parse_args()
    torch.manual_seed(0)
    engine = NativeEngine(torch.get_num_threads())
    console = Console(width=140)
    console.print(describe())
    result: dict[str, object] = {
        "machine": describe(),
        "instruction_set": engine.isa,
        "threads": torch.get_num_threads(),
    }
    for (name, size), bits in itertools.product(HEADS.items(), (8, 4)):
        codes, x = _random_head(size, bits)
        screen = build_head_screen(codes, x)
        packed = pack(codes)
        share = sum(t.nbytes for t in screen.tensors()) / packed.data.nbytes
        found = interleaved(_jobs(engine, packed, screen, x), arguments.repeats)
        title = f"{name}, int{bits}, coarse copy {share:.0%} of the bytes"
        console.print(_table(title, found))
        result[f"{name}, int{bits}"] = {
            "coarse_share": share,
            "seconds": {", ".join(key): value for key, value in medians(found).items()},
        }
    console.print(f"written to {save_result('head', result, arguments.json)}")


def _random_head(size: tuple[int, int], bits: int) -> tuple[Codes, Tensor]:
    """Return the codes of a head `[vocab, hidden]` and hidden states `[rows, hidden]`.

    Logits have a standard deviation of 3, and each row has a token that stands out.
    """
    weight = torch.randn(size)
    x = torch.randn(max(ROWS), size[1]) * 3 / size[1] ** 0.5
    return quantise(weight, bits), x + weight[: max(ROWS)] * 12 / size[1]


def _jobs(
    engine: NativeEngine, packed: PackedMatrix, screen: HeadScreen, x: Tensor
) -> dict[tuple[str, str], Run]:
    """Return what to measure, by kind and rows, and by the way that it is computed."""
    whole: Heads = [(copy, None) for copy in copies_of(packed)]
    coarse: Heads = [
        (copy, HeadScreen(*(tensor.clone() for tensor in screen.tensors()))) for copy, _ in whole
    ]
    jobs: dict[tuple[str, str], Run] = {}
    for (kind, draw), rows in itertools.product(DRAWS.items(), ROWS):
        draws = [draw._replace(key=key_of(0, row)) for row in range(rows)]
        case = f"{kind}, {rows} rows"
        jobs[case, "whole"] = _drawn(engine, whole, x[:rows], draws)
        jobs[case, "screened"] = _drawn(engine, coarse, x[:rows], draws)
        jobs[case, "all logits"] = _chosen(engine, whole, x[:rows], draws)
    return jobs


def _drawn(engine: NativeEngine, heads: Heads, x: Tensor, draws: list[Draw]) -> Run:
    """Return a measurement of draws from each of the heads."""

    def run() -> None:
        for packed, screen in heads:
            coarse = None if screen is None else head_screen_struct(screen)
            engine.draw(matrix_struct(packed), coarse, x, draws)

    return lambda: timed(run) / len(heads)


def _chosen(engine: NativeEngine, heads: Heads, x: Tensor, draws: list[Draw]) -> Run:
    """Return a measurement of all logits and PyTorch's choice among them."""
    y = torch.empty(len(x), heads[0][0].outputs)

    def run() -> None:
        for packed, _ in heads:
            engine.project(matrix_struct(packed), x, y)
            for row, draw in zip(y, draws, strict=True):
                choose(row, draw)

    return lambda: timed(run) / len(heads)


def _table(title: str, found: dict[tuple[str, str], list[float]]) -> Table:
    table = Table(title=f"{title}; ms (median ± half range)")
    for column in ("", *WAYS, "screened over whole"):
        table.add_column(column, justify="left" if not column else "right")
    middle = medians(found)
    for case in dict.fromkeys(case for case, _ in found):
        cells = [f"{1e3 * middle[case, w]:.2f} ±{spread(found[case, w]):.0%}" for w in WAYS]
        table.add_row(case, *cells, f"{middle[case, 'screened'] / middle[case, 'whole']:.2f}")
    return table


if __name__ == "__main__":
    main()
