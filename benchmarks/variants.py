"""What becomes of the bytes that a variant saves: `python -m benchmarks.variants`.

Speed-up over byte reduction of narrow, shallow and the shipped variants, one and eight rows; what a
batch that mixes variants costs over unmixed ones; what a switch costs; what stays in memory.
"""

import time
from dataclasses import replace
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.bytes_read import step_bytes
from benchmarks.machine import parser, save, spread
from benchmarks.peers import interleaved, medians
from pruners.variant import BASE, VariantSpec, depth_spec, width_spec
from server.app import load
from server.engine.backends.pytorch.linear import nbytes
from server.engine.loading.load import AnyDecoder, LoadedModel
from server.engine.segment import Segment
from server.jobs.step_timing import decode_step, zeroed_decoder
from server.settings import JobSettings
from telemetry.machine import describe

CACHED = 128
ROWS = (1, 8)


def mixed_batch(decoder: AnyDecoder, model: LoadedModel, repeats: int) -> dict[str, object]:
    """Seconds of eight rows over four variants against the mean of unmixed batches of each."""
    names = list(model.variants)
    picked = [names[len(names) * i // 4] for i in range(4)]
    specs = [model.variants[name] for name in picked]
    jobs = {("unmixed", spec.name): decode_step(decoder, spec, 8, CACHED) for spec in specs}
    caches = [decoder.cache.open() for _ in range(8)]
    for cache in caches:
        assert cache.reserve(CACHED + 1)

    def mixed() -> float:
        taken = []
        for _ in range(5):
            for cache in caches:
                cache.seen = cache.held = CACHED
            rows = [Segment([5], cache, specs[i % 4]) for i, cache in enumerate(caches)]
            rows.sort(key=lambda segment: segment.variant.name)
            started = time.perf_counter()
            decoder.best(decoder.forward(rows))
            taken.append(time.perf_counter() - started)
        return median(taken)

    jobs["mixed", "all"] = mixed
    found = medians(interleaved(jobs, repeats))
    for cache in caches:
        cache.close()
    alone = sum(found["unmixed", spec.name] for spec in specs) / 4
    return {"variants": picked, "mixed": found["mixed", "all"], "mean_unmixed": alone}


def switch_cost(decoder: AnyDecoder, spec: VariantSpec, repeats: int) -> float:
    """Seconds that a step is longer after another variant's step than after its own.

    The other one is its twin, which reads the same weights: what the processor's caches hold of
    them is not part of a switch.
    """
    twin = replace(spec, name="twin")
    cache = decoder.cache.open()
    assert cache.reserve(CACHED + 1)

    def step(chosen: VariantSpec) -> float:
        cache.seen = cache.held = CACHED
        started = time.perf_counter()
        decoder.forward([Segment([5], cache, chosen)])
        return time.perf_counter() - started

    step(twin)
    same, switched = [], []
    for _ in range(40 * repeats):
        step(spec)
        same.append(step(spec))
        step(twin)
        switched.append(step(spec))
    cache.close()
    return median(switched) - median(same)


def main() -> None:
    """Runs the benchmark and prints its tables."""
    options = parser(__doc__)
    options.add_argument("--weights", default="auto")
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    model = load(JobSettings(weights=arguments.weights))
    shape = model.weights.shape
    base = model.variants[BASE]
    skipped = list(range(shape.layers // 4, 2 * (shape.layers // 4)))
    specs = {
        **model.variants,
        "ffn-50, plain": width_spec(shape, 0.5),
        f"{len(skipped)} of {shape.layers} layers less": depth_spec(shape, skipped),
    }
    decoder = zeroed_decoder(model, 16 * (CACHED + 128))
    jobs = {
        (name, str(rows)): decode_step(decoder, spec, rows, CACHED)
        for name, spec in specs.items()
        for rows in ROWS
    }
    found = interleaved(jobs, arguments.repeats)
    seconds = medians(found)
    console = Console(width=130)
    console.print(describe())
    table = Table(title=f"{model.name}, {model.weights.precision}, {CACHED} tokens cached")
    table.add_column("variant")
    for rows in ROWS:
        for title in ("ms", "bytes", "speed-up", "over byte reduction"):
            table.add_column(f"{title}, {rows} rows" if rows > 1 else title, justify="right")
    results: dict[str, dict[str, float]] = {}
    for name, spec in specs.items():
        cells: list[str] = []
        figures: dict[str, float] = {}
        for rows in ROWS:
            share = step_bytes(model, spec, rows, CACHED) / step_bytes(model, base, rows, CACHED)
            taken = seconds[name, str(rows)]
            faster = seconds[BASE, str(rows)] / taken
            cells += [
                f"{1e3 * taken:.2f} ±{spread(found[name, str(rows)]):.0%}",
                f"{share:.3f}", f"{faster:.2f}x", f"{faster * share:.2f}",
            ]  # fmt: skip
            figures |= {
                f"seconds_{rows}": taken,
                f"bytes_{rows}": share,
                f"efficiency_{rows}": faster * share,
            }  # fmt: skip
        table.add_row(name, *cells)
        results[name] = figures
    console.print(table)
    mixed = mixed_batch(decoder, model, arguments.repeats)
    console.print(
        f"eight rows over four variants: {1e3 * float(str(mixed['mixed'])):.2f} ms, "
        f"{float(str(mixed['mixed'])) / float(str(mixed['mean_unmixed'])):.2f}x unmixed batches"
    )
    switch = switch_cost(decoder, specs["ffn-50, plain"], arguments.repeats)
    console.print(f"a switch of variant between steps: {1e6 * switch:.0f} us")
    resident = sum(nbytes(t) for t in model.weights.tensors())
    owns = [own for parts in model.own.values() for own in parts.values()]
    extra = sum(nbytes(t) for t in {t.data_ptr(): t for o in owns for t in o.tensors()}.values())
    console.print(
        f"resident: base {resident / 1e6:.1f} MB, all {len(model.variants) - 1} variants "
        f"{extra / 1e6:.1f} MB more ({extra / resident:.1%})"
    )
    result = {
        "machine": describe(),
        "variants": results,
        "mixed_batch": mixed,
        "switch_seconds": switch,
        "resident_bytes": {"base": resident, "variants": extra},
    }
    path = save(f"variants-{model.weights.precision}", result, arguments.json)
    console.print(f"written to {path}")


if __name__ == "__main__":
    main()
