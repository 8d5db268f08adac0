"""Measures how long steps of the decoder take on this device, variant by variant."""

import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from rich.progress import Progress

from pruners.allocation import LatencyCost, ffn_levels, kv_levels
from pruners.support.progress import track
from pruners.variant import BASE, PARTS, Block, Part, VariantSpec, base_spec
from server.engine.backends.base import Decoder, Segment
from server.engine.loading.load import LoadedModel, open_decoder
from telemetry.machine import describe, device_fingerprint

STEPS = 5
"""Decode steps of one measurement, whose median counts."""
TOKEN_ID = 5
"""Of all tokens that are timed. Which one takes no time."""
_SLOTS_BESIDE_CACHED = 65  # of a sequence: new tokens, and rounding up to the cache's grain

Timer = Callable[[], float]
"""Takes one measurement, in seconds."""
_Key = TypeVar("_Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class TimedSizes:
    """What is timed: decode steps of (rows, cached tokens of each), and prompts of some tokens."""

    decode: tuple[tuple[int, int], ...] = ((1, 128), (1, 1024), (8, 128), (8, 1024))
    prompts: tuple[int, ...] = (128, 512)
    repeats: int = 5

    @property
    def slots(self) -> int:
        """The slots of the KV cache that the largest of them needs."""
        decode = [rows * (cached + _SLOTS_BESIDE_CACHED) for rows, cached in self.decode]
        return max(*decode, *self.prompts)


def time_variants(
    model: LoadedModel, sizes: TimedSizes | None = None, progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Return the seconds of `decode` steps and of `prefill` by variant, under the device's key.

    The keys of sizes are `ROWSxCACHED` and a number of tokens. The base has the median of its
    measurements. A variant has that times the median of its ratios to the base, each measured just
    before: the speed of a shared machine changes by more than variants differ. Sizes beyond the
    model's context are left out.
    """
    sizes = sizes or TimedSizes()
    weights = model.weights
    decoder = open_zeroed_decoder(model, sizes.slots)
    timers: dict[tuple[str, str, str], Timer] = {}
    for rows, cached in sizes.decode:
        for name, spec in model.variants.items():
            if cached < weights.context:
                timer = decode_timer(decoder, spec, rows, cached)
                timers["decode", name, f"{rows}x{cached}"] = timer
    for tokens in sizes.prompts:
        for name, spec in model.variants.items():
            if tokens <= weights.context:
                timers["prefill", name, str(tokens)] = prefill_timer(decoder, spec, tokens)
    seconds = _measure_interleaved(timers, sizes.repeats, "Timing variants", progress)
    machine = describe()
    result: dict[str, Any] = {
        "machine": machine, "weights": weights.precision, "repeats": sizes.repeats,
    }  # fmt: skip
    for (kind, name, size), values in seconds.items():
        base = seconds[kind, BASE, size]
        ratio = median(value / of_base for value, of_base in zip(values, base, strict=True))
        result.setdefault(kind, {}).setdefault(name, {})[size] = ratio * median(base)
    return {device_fingerprint(machine, weights.precision): result}


def block_latency(
    model: LoadedModel, repeats: int = 5, progress: Progress | None = None
) -> LatencyCost:
    """Return how long a block of each width takes in a decode step of one row.

    A block's share is (step with this width in all layers - step without such blocks) / layers.
    """
    shape = model.weights.shape
    rows, cached = TimedSizes().decode[0]
    widths: dict[Part, tuple[int, ...]] = {"attention": kv_levels(shape), "mlp": ffn_levels(shape)}
    decoder = open_zeroed_decoder(model, cached + 128)
    timers: dict[tuple[Part, int], Timer] = {}
    for part in PARTS:
        for width in widths[part]:
            spec = base_spec(shape)
            for layer in range(shape.layers):
                spec = spec.with_width(Block(layer, part), width)
            timers[part, width] = decode_timer(decoder, spec, rows, cached)
    measured = _measure_interleaved(timers, repeats, "Timing blocks", progress)
    steps = {key: median(values) for key, values in measured.items()}
    blocks = {
        part: {w: (steps[part, w] - steps[part, 0]) / shape.layers for w in widths[part]}
        for part in PARTS
    }
    layer_seconds = blocks["attention"][shape.kv_groups] + blocks["mlp"][shape.ffn]
    return LatencyCost(steps["mlp", shape.ffn] - shape.layers * layer_seconds, blocks)


def open_zeroed_decoder(model: LoadedModel, slots: int) -> Decoder:
    """Return a decoder whose cache holds zeros: steps that read it need numbers, whichever."""
    decoder = open_decoder(model, slots)
    for tensor in decoder.cache.tensors():
        tensor.zero_()
    return decoder


def decode_timer(decoder: Decoder, spec: VariantSpec, rows: int, cached: int) -> Timer:
    """Return what times a step of `rows` sequences with `cached` tokens each, argmax included."""

    def measure() -> float:
        caches = [decoder.cache.open() for _ in range(rows)]
        for cache in caches:
            assert cache.reserve(cached + 1)
        seconds = []
        for _ in range(STEPS):
            for cache in caches:
                cache.processed = cache.cached = cached
            started = time.perf_counter()
            segments = [Segment([TOKEN_ID], cache, spec) for cache in caches]
            decoder.argmax(decoder.forward(segments))
            wait_for(decoder)
            seconds.append(time.perf_counter() - started)
        for cache in caches:
            cache.close()
        return median(seconds)

    return measure


def prefill_timer(decoder: Decoder, spec: VariantSpec, tokens: int) -> Timer:
    """Return what times a prompt of some tokens, with the argmax of the first token after it."""

    def measure() -> float:
        cache = decoder.cache.open()
        assert cache.reserve(tokens)
        started = time.perf_counter()
        hidden = decoder.forward([Segment([TOKEN_ID] * tokens, cache, spec, outputs=1)])
        decoder.argmax(hidden[-1:])
        wait_for(decoder)
        seconds = time.perf_counter() - started
        cache.close()
        return seconds

    return measure


def _measure_interleaved(
    timers: Mapping[_Key, Timer], repeats: int, title: str, progress: Progress | None
) -> dict[_Key, list[float]]:
    """Take `repeats` measurements of each, in turns, so that a slow moment meets all of them."""
    for timer in timers.values():
        timer()  # warms kernels and slices
    seconds: dict[_Key, list[float]] = {key: [] for key in timers}
    for _ in track(range(repeats), title, progress):
        for key, timer in timers.items():
            seconds[key].append(timer())
    return seconds


def wait_for(decoder: Decoder) -> None:
    """Wait until the decoder has computed what it was given."""
    if decoder.weights.device.type == "cuda":
        torch.cuda.synchronize()
