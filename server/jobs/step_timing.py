"""How long steps take on this device, variant by variant, in one interleaved run."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from rich.progress import Progress

from pruners.allocation import LatencyCost, ffn_levels, kv_levels
from pruners.support.progress import track
from pruners.variant import BASE, PARTS, Block, Part, VariantSpec, base_spec
from server.engine.backends.base import Decoder, Segment
from server.engine.loading.load import LoadedModel, open_decoder
from telemetry.machine import describe, device_fingerprint

DECODE = ((1, 128), (1, 1024), (8, 128), (8, 1024))
"""Rows and cached tokens of each."""
PREFILL = (128, 512)
"""Tokens of a prompt."""
STEPS = 5
"""That one measurement of a decode step takes."""


def time_variants(
    model: LoadedModel,
    repeats: int = 5,
    progress: Progress | None = None,
    decode: Sequence[tuple[int, int]] = DECODE,
    prompts: Sequence[int] = PREFILL,
) -> dict[str, dict[str, Any]]:
    """By device fingerprint: `decode` and `prefill` seconds of each variant.

    Keys are `ROWSxCACHED` and tokens. Of the base they are medians. Of a variant it is the ratio to
    the base, measured just before, whose median counts: a shared machine is faster and slower by
    more than variants differ. A context that the model does not have is left out.
    """
    weights = model.weights
    longest = max(*(rows * (cached + 65) for rows, cached in decode), *prompts)
    decoder = zeroed_decoder(model, longest)
    jobs: dict[tuple[str, str, str], Callable[[], float]] = {}
    for rows, cached in decode:
        for name, spec in model.variants.items():
            if cached < weights.context:
                jobs["decode", name, f"{rows}x{cached}"] = decode_step(decoder, spec, rows, cached)
    for tokens in prompts:
        for name, spec in model.variants.items():
            if tokens <= weights.context:
                jobs["prefill", name, str(tokens)] = prefill(decoder, spec, tokens)
    seconds: dict[tuple[str, str, str], list[float]] = {key: [] for key in jobs}
    for job in jobs.values():
        job()  # warms kernels and slices, not counted
    for _ in track(range(repeats), "Timing variants", progress):
        for key, job in jobs.items():
            seconds[key].append(job())
    machine = describe()
    precision = weights.precision
    found: dict[str, Any] = {"machine": machine, "weights": precision, "repeats": repeats}
    for (kind, name, size), values in seconds.items():
        base = seconds[kind, BASE, size]
        ratio = median(value / whole for value, whole in zip(values, base, strict=True))
        found.setdefault(kind, {}).setdefault(name, {})[size] = ratio * median(base)
    return {device_fingerprint(machine, precision): found}


def block_latency(
    model: LoadedModel, repeats: int = 5, progress: Progress | None = None
) -> LatencyCost:
    """How long one block of each width takes in a decode step of one row with `DECODE`'s context.

    The difference between steps with that width in all layers and steps without such blocks.
    """
    shape = model.weights.shape
    rows, cached = DECODE[0]
    widths: dict[Part, tuple[int, ...]] = {"attention": kv_levels(shape), "mlp": ffn_levels(shape)}
    jobs: dict[tuple[Part, int], Callable[[], float]] = {}
    decoder = zeroed_decoder(model, cached + 128)
    for part in PARTS:
        for width in widths[part]:
            spec = base_spec(shape)
            for layer in range(shape.layers):
                spec = spec.with_width(Block(layer, part), width)
            jobs[part, width] = decode_step(decoder, spec, rows, cached)
    steps: dict[tuple[Part, int], list[float]] = {key: [] for key in jobs}
    for job in jobs.values():
        job()  # warms kernels and slices, not counted
    for _ in track(range(repeats), "Timing blocks", progress):
        for key, job in jobs.items():
            steps[key].append(job())
    found = {key: median(values) for key, values in steps.items()}
    blocks = {
        part: {w: (found[part, w] - found[part, 0]) / shape.layers for w in widths[part]}
        for part in PARTS
    }
    whole = found["mlp", shape.ffn]
    full = blocks["attention"][shape.kv_groups] + blocks["mlp"][shape.ffn]
    return LatencyCost(whole - shape.layers * full, blocks)


def zeroed_decoder(model: LoadedModel, slots: int) -> Decoder:
    """A decoder whose cache holds numbers from the start."""
    decoder = open_decoder(model, slots)
    for tensor in decoder.cache.tensors():
        tensor.zero_()  # what is read must be numbers; which ones takes no time
    return decoder


def decode_step(decoder: Decoder, spec: VariantSpec, rows: int, cached: int) -> Callable[[], float]:
    """Measures seconds of a step of `rows` sequences with `cached` tokens each.

    Their likeliest next tokens are included.
    """

    def measure() -> float:
        caches = [decoder.cache.open() for _ in range(rows)]
        for cache in caches:
            assert cache.reserve(cached + 1)
        taken = []
        for _ in range(STEPS):
            for cache in caches:
                cache.processed = cache.cached = cached
            started = time.perf_counter()
            decoder.argmax(decoder.forward([Segment([5], cache, spec) for cache in caches]))
            _wait(decoder)
            taken.append(time.perf_counter() - started)
        for cache in caches:
            cache.close()
        return median(taken)

    return measure


def prefill(decoder: Decoder, spec: VariantSpec, tokens: int) -> Callable[[], float]:
    """Measures seconds of a prompt of so many tokens, the first one after it included."""

    def measure() -> float:
        cache = decoder.cache.open()
        assert cache.reserve(tokens)
        started = time.perf_counter()
        hidden = decoder.forward([Segment([5] * tokens, cache, spec, outputs=1)])
        decoder.argmax(hidden[-1:])
        _wait(decoder)
        seconds = time.perf_counter() - started
        cache.close()
        return seconds

    return measure


def _wait(decoder: Decoder) -> None:
    if decoder.weights.device.type == "cuda":
        torch.cuda.synchronize()
