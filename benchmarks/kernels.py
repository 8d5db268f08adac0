"""Each native kernel beside the limits of the machine: `python -m benchmarks.kernels`.

Everything in one run and in turn. Prints, for each kernel, the time of a call, the bytes of weights
or cache that it reads a second, and its multiply-adds per cycle of one core. Beside them stand the
shares of the limits: memory that all threads read, and multiply-adds of operands in registers,
both measured in the same run. A kernel is at its best if either share is high. With few rows memory
is the limit, with many rows arithmetic is.

Weights and caches are larger than the processor's caches, which hold less of a model, too.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.support.machine_limits import MachineLimits, measure_limits
from benchmarks.support.packed_copies import copies_of, timed
from benchmarks.support.peers import interleaved, medians
from benchmarks.support.results import option_parser, save_result, spread
from pruners.architecture import Shape
from pruners.variant import base_spec
from server.engine.backends.native.decoder import NativeDecoder
from server.engine.backends.native.library import NativeEngine
from server.engine.backends.native.model import matrix_struct
from server.engine.backends.native.packed_weights import PackedLayer, PackedWeights
from server.engine.backends.native.packing import PackedMatrix, pack, quantise
from server.engine.cache.kv_cache import KVCache
from server.jobs.step_timing import decode_timer
from telemetry.machine import describe

ROWS = (1, 8, 32)
SIZE = 4096  # outputs and inputs of the projection
CACHED = {1: 32768, 8: 8192, 32: 2048}  # tokens of each row of attention
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel to measure.

    A call of `run` returns seconds. `bytes_read` and `multiply_adds` are those of a call, and
    `operands` is the type of the numbers that are multiplied.
    """

    run: Callable[[], float]
    bytes_read: int
    multiply_adds: int
    operands: str


def main() -> None:
    """Run the benchmark and print its table."""
    options = option_parser(__doc__)
    options.add_argument("--repeats", type=int, default=9)
    arguments = options.parse_args()
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    engine = NativeEngine(threads)
    kernels = _projections(engine) | _attentions(engine.isa)
    limits = measure_limits(threads)
    jobs = {(name, kernel.operands): kernel.run for name, kernel in kernels.items()}
    seconds = interleaved(jobs, arguments.repeats)
    figures = {
        name: _figures(kernels[name], value, limits, threads)
        for (name, _), value in medians(seconds).items()
    }
    spreads = {name: spread(values) for (name, _), values in seconds.items()}

    console = Console(width=140)
    console.print(describe())
    console.print(
        f"instruction set {engine.isa}, {threads} threads, {limits.clock_hz / 1e9:.2f} GHz; "
        f"limits: reads {limits.read_bytes_per_second / 1e9:.1f} GB/s, multiply-adds per cycle "
        + ", ".join(f"{kind} {rate:.0f}" for kind, rate in limits.multiply_adds.items())
    )
    console.print(_table(figures, spreads))
    result = {
        "machine": describe(),
        "instruction_set": engine.isa,
        "threads": threads,
        "limits": asdict(limits),
        "kernels": figures,
        "spread": spreads,
    }
    console.print(f"written to {save_result('kernels', result, arguments.json)}")


def _projections(engine: NativeEngine) -> dict[str, Kernel]:
    """Return products of a matrix in 4 and 8 bits with a few rows."""
    kernels = {}
    for bits in (4, 8):
        copies = copies_of(pack(quantise(torch.randn(SIZE, SIZE), bits)))
        for rows in ROWS:
            run = _projection(engine, copies, torch.randn(rows, SIZE))
            size = copies[0].data.nbytes
            kernels[f"projection int{bits}, {rows} rows"] = Kernel(
                run, size, rows * SIZE * SIZE, "int8"
            )
    return kernels


def _projection(engine: NativeEngine, copies: list[PackedMatrix], x: Tensor) -> Callable[[], float]:
    """Return a measurement: the mean time of a product with each of the copies."""
    structs = [matrix_struct(packed) for packed in copies]
    y = torch.empty(len(x), copies[0].outputs)

    def run() -> None:
        for struct in structs:
            engine.project(struct, x, y)

    return lambda: timed(run) / len(copies)


def _attentions(isa: str) -> dict[str, Kernel]:
    """Return steps of a model of one layer whose attention takes nearly all of the time."""
    shape = Shape(layers=1, hidden=64, heads=12, kv_groups=4, head_dim=64, ffn=32, vocab=16)
    kernels = {}
    for name, dtype in (("bf16", torch.bfloat16), ("int8", torch.int8)):
        for rows in ROWS:
            cached = CACHED[rows]
            weights = _tiny_weights(shape, cached + 64)
            decoder = NativeDecoder(weights, KVCache(shape, rows * (cached + 64), dtype, CPU))
            for tensor in decoder.cache.tensors():
                tensor.zero_()
            numbers = 2 * rows * cached * shape.kv_groups  # heads of keys and values
            size = numbers * (shape.head_dim * dtype.itemsize + (4 if name == "int8" else 0))
            multiply_adds = numbers * shape.queries_per_group * shape.head_dim
            kernels[f"attention, {name} cache, {rows} rows x {cached}"] = Kernel(
                decode_timer(decoder, base_spec(shape), rows, cached),
                size,
                multiply_adds,
                "bf16" if isa == "avx512bf16" else "fp32",
            )
    return kernels


def _tiny_weights(shape: Shape, positions: int) -> PackedWeights:
    """Return weights of one layer of a model, with tables for so many positions."""

    def matrix(outputs: int, inputs: int, input_major: bool = False) -> PackedMatrix:
        return pack(quantise(torch.randn(outputs, inputs), 8), None, input_major)

    queries = shape.heads * shape.head_dim
    norm = torch.ones(shape.hidden)
    layer = PackedLayer(
        qkv=matrix(queries + 2 * shape.kv_groups * shape.head_dim, shape.hidden),
        o=matrix(shape.hidden, queries, input_major=True),
        gate_up=matrix(2 * shape.ffn, shape.hidden),
        down=matrix(shape.hidden, shape.ffn, input_major=True),
        norms={"attention_norm": norm, "mlp_norm": norm},
        rope="default",
        window=None,
    )
    table = torch.ones(positions, shape.head_dim)
    head = matrix(shape.vocab, shape.hidden)
    return PackedWeights(
        shape=shape,
        layers=[layer],
        embed=head,
        head=head,
        final_norm=norm,
        rope={"default": (table, table)},
        eps=1e-5,
        embed_scale=1.0,
        softmax_scale=shape.head_dim**-0.5,
        residual_scale=1.0,
        activation="silu",
        context=positions,
        errors={},
        precision="int8",
    )


def _figures(
    kernel: Kernel, seconds: float, limits: MachineLimits, threads: int
) -> dict[str, float | None]:
    """Return what a kernel does in a second and in a cycle of a core, and the shares of limits."""
    read = kernel.bytes_read / seconds
    rate = kernel.multiply_adds / seconds / limits.clock_hz / threads
    limit = limits.multiply_adds.get(kernel.operands)
    return {
        "seconds": seconds,
        "bytes_per_second": read,
        "share_of_read_bandwidth": read / limits.read_bytes_per_second,
        "multiply_adds_per_cycle": rate,
        "share_of_multiply_adds": None if limit is None else rate / limit,
    }


def _table(rows: dict[str, dict[str, float | None]], spreads: dict[str, float]) -> Table:
    table = Table(title="native kernels (median ± half range)")
    for column in ("", "ms", "GB/s", "of reads", "multiply-adds/cycle", "of limit"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in rows.items():
        share = row["share_of_multiply_adds"]
        table.add_row(
            name,
            f"{1e3 * (row['seconds'] or 0):.3f} ±{spreads[name]:.0%}",
            f"{(row['bytes_per_second'] or 0) / 1e9:.1f}",
            f"{row['share_of_read_bandwidth']:.0%}",
            f"{row['multiply_adds_per_cycle']:.2f}",
            "-" if share is None else f"{share:.0%}",
        )
    return table


if __name__ == "__main__":
    main()
