"""What becomes of the bytes that a variant saves: `python -m benchmarks.variants`.

Speed-up over byte reduction of narrow, shallow and the shipped variants, one and eight rows; what a
batch that mixes variants costs over unmixed ones; what a switch costs; what stays in memory.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.support.bytes_read import step_bytes
from benchmarks.support.peers import interleaved, medians
from benchmarks.support.results import option_parser, save_result, spread
from pruners.variant import BASE, VariantSpec, depth_spec, width_spec
from server.engine.backends.base import Decoder, Segment
from server.engine.config import ModelConfig
from server.engine.loading.configured_model import load_configured_model
from server.engine.loading.load import LoadedModel
from server.jobs.step_timing import decode_timer, open_zeroed_decoder
from telemetry.machine import describe

Series = dict[tuple[str, str], list[float]]
"""Seconds of a step in each repeat, by variant and number of rows."""
CACHED = 128
ROWS = (1, 8)


def mixed_batch(decoder: Decoder, model: LoadedModel, repeats: int) -> dict[str, Any]:
    """Return the seconds of a step of eight rows over four variants, and the mean of steps of eight
    rows of one of these variants."""
    names = list(model.variants)
    picked = [names[len(names) * i // 4] for i in range(4)]
    specs = [model.variants[name] for name in picked]
    jobs = {("unmixed", spec.name): decode_timer(decoder, spec, 8, CACHED) for spec in specs}
    caches = [decoder.cache.open() for _ in range(8)]
    for cache in caches:
        assert cache.reserve(CACHED + 1)

    def mixed() -> float:
        taken = []
        for _ in range(5):
            for cache in caches:
                cache.processed = cache.cached = CACHED
            rows = [Segment([5], cache, specs[i % 4]) for i, cache in enumerate(caches)]
            rows.sort(key=lambda segment: segment.variant.name)
            started = time.perf_counter()
            decoder.argmax(decoder.forward(rows))
            taken.append(time.perf_counter() - started)
        return median(taken)

    jobs["mixed", "all"] = mixed
    found = medians(interleaved(jobs, repeats))
    for cache in caches:
        cache.close()
    alone = sum(found["unmixed", spec.name] for spec in specs) / 4
    return {"variants": picked, "mixed": found["mixed", "all"], "mean_unmixed": alone}


def switch_cost(decoder: Decoder, spec: VariantSpec, repeats: int) -> float:
    """Return by how many seconds a step is longer after a step of another variant.

    The other variant reads the same weights, so that the processor's caches hold the same of them.
    """
    twin = replace(spec, name="twin")
    cache = decoder.cache.open()
    assert cache.reserve(CACHED + 1)

    def step(chosen: VariantSpec) -> float:
        cache.processed = cache.cached = CACHED
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
    """Run the benchmark and print its tables."""
    options = option_parser(__doc__)
    options.add_argument("--weights", default="auto")
    options.add_argument("--repeats", type=int, default=5)
    arguments = options.parse_args()
    model = load_configured_model(ModelConfig(weights=arguments.weights))
    shape = model.weights.shape
    skipped = list(range(shape.layers // 4, 2 * (shape.layers // 4)))
    plain = "ffn-50, plain"
    specs = {
        **model.variants,
        plain: width_spec(shape, 0.5),
        f"{len(skipped)} of {shape.layers} layers less": depth_spec(shape, skipped),
    }
    decoder = open_zeroed_decoder(model, 16 * (CACHED + 128))
    jobs = {
        (name, str(rows)): decode_timer(decoder, spec, rows, CACHED)
        for name, spec in specs.items()
        for rows in ROWS
    }
    found = interleaved(jobs, arguments.repeats)
    mixed = mixed_batch(decoder, model, arguments.repeats)
    switch = switch_cost(decoder, specs[plain], arguments.repeats)
    resident, extra = resident_bytes(model)
    figures = variant_figures(model, specs, found, CACHED)

    console = Console(width=130)
    console.print(describe())
    title = f"{model.name}, {model.weights.precision}, {CACHED} tokens cached"
    console.print(_table(title, figures, found))
    console.print(
        f"eight rows over four variants: {1e3 * mixed['mixed']:.2f} ms, "
        f"{mixed['mixed'] / mixed['mean_unmixed']:.2f}x unmixed batches"
    )
    console.print(f"a switch of variant between steps: {1e6 * switch:.0f} us")
    console.print(
        f"resident: base {resident / 1e6:.1f} MB, all {len(model.variants) - 1} variants "
        f"{extra / 1e6:.1f} MB more ({extra / resident:.1%})"
    )
    result = {
        "machine": describe(),
        "variants": figures,
        "mixed_batch": mixed,
        "switch_seconds": switch,
        "resident_bytes": {"base": resident, "variants": extra},
    }
    path = save_result(f"variants-{model.weights.precision}", result, arguments.json)
    console.print(f"written to {path}")


def resident_bytes(model: LoadedModel) -> tuple[int, int]:
    """Return the bytes of the base, and of the corrections of all variants beside it."""
    corrections = [own for variants in model.corrections.values() for own in variants.values()]
    # Variants share some tensors: each counts once.
    tensors = {t.data_ptr(): t for own in corrections for t in own.tensors()}
    base = sum(tensor.nbytes for tensor in model.weights.tensors())
    return base, sum(tensor.nbytes for tensor in tensors.values())


def variant_figures(
    model: LoadedModel, specs: Mapping[str, VariantSpec], found: Series, cached: int
) -> dict[str, dict[str, float]]:
    """Return, for each variant and number of rows, seconds, bytes over the base's, and efficiency:
    the speed-up over the reduction of bytes. Each row has `cached` tokens in the cache."""
    base, seconds = model.variants[BASE], medians(found)
    figures: dict[str, dict[str, float]] = {}
    for name, spec in specs.items():
        figures[name] = {}
        for rows in dict.fromkeys(int(rows) for _, rows in found):
            share = step_bytes(model, spec, rows, cached) / step_bytes(model, base, rows, cached)
            taken = seconds[name, str(rows)]
            figures[name] |= {
                f"seconds_{rows}": taken,
                f"bytes_{rows}": share,
                f"efficiency_{rows}": share * seconds[BASE, str(rows)] / taken,
            }
    return figures


def _table(title: str, figures: dict[str, dict[str, float]], found: Series) -> Table:
    table = Table(title=title)
    table.add_column("variant")
    for rows in ROWS:
        for column in ("ms", "bytes", "speed-up", "over byte reduction"):
            table.add_column(f"{column}, {rows} rows" if rows > 1 else column, justify="right")
    for name, values in figures.items():
        cells: list[str] = []
        for rows in ROWS:
            share, efficiency = values[f"bytes_{rows}"], values[f"efficiency_{rows}"]
            cells += [
                f"{1e3 * values[f'seconds_{rows}']:.2f} ±{spread(found[name, str(rows)]):.0%}",
                f"{share:.3f}",
                f"{efficiency / share:.2f}x",
                f"{efficiency:.2f}",
            ]
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    main()
