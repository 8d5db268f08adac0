"""The figures of one shape: decode steps, prompts, graphs, variants, readers."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_check.shapes import Sizes
from benchmarks.support.bytes_read import step_bytes
from benchmarks.support.peers import interleaved, medians
from benchmarks.variants import variant_figures
from pruners.variant import BASE, VariantSpec, depth_spec, width_spec
from server.engine.backends.base import Decoder, Segment
from server.engine.backends.pytorch.decoder import PyTorchDecoder
from server.engine.backends.pytorch.weights import PyTorchWeights
from server.engine.cache.kv_cache import KVCache
from server.engine.loading.load import LoadedModel
from server.jobs.reader_timing import reading_timer
from server.jobs.step_timing import TOKEN_ID, decode_timer, open_zeroed_decoder, prefill_timer

_REPEATS = 7
_FULL = "full"

Part = tuple[str, dict[str, Any]]
"""The name of a part of the result, and its figures."""


class Figures:
    """Measures a model of one shape beside `bandwidth`, the bytes that its device copies a second.

    Each part takes turns between what it compares, and ends when its time does.
    """

    def __init__(self, model: LoadedModel, sizes: Sizes, bandwidth: float) -> None:
        self._model = model
        self._sizes = sizes
        self._bandwidth = bandwidth
        self._base = model.variants[BASE]
        self._decoder: Decoder = open_zeroed_decoder(model, sizes.slots)

    def parts(self, until: float) -> Iterator[Part]:
        """Yield the parts one after the other until the time `until` of the monotonic clock."""
        yield "model", self._described()
        kinds = (self._decode, self._prefill, self._graphs, self._variants, self._readers)
        for index, measured in enumerate(kinds):
            share = (until - time.monotonic()) / (len(kinds) - index)
            values = measured(time.monotonic() + share)
            if values:
                yield measured.__name__.lstrip("_"), values

    def _described(self) -> dict[str, Any]:
        weights = self._model.weights
        return {
            "weights": weights.precision,
            "bytes": sum(tensor.nbytes for tensor in weights.tensors()),
            "cached": self._sizes.cached,
        }

    def _decode(self, until: float) -> dict[str, Any]:
        """Return tokens a second by number of sequences, and the share of the copy bandwidth."""
        cached = self._sizes.cached
        jobs = {
            ("decode", str(rows)): decode_timer(self._decoder, self._base, rows, cached)
            for rows in self._sizes.rows
        }
        found = {}
        for (_, rows), seconds in medians(interleaved(jobs, _REPEATS, until)).items():
            read = step_bytes(self._model, self._base, int(rows), cached)
            found[rows] = {
                "seconds": seconds,
                "tokens_per_second": int(rows) / seconds,
                "of_copy": read / seconds / self._bandwidth,
            }
        return found

    def _prefill(self, until: float) -> dict[str, Any]:
        """Return prompt tokens a second by the prompt's tokens, and multiply-adds a second."""
        jobs = {
            ("prefill", str(tokens)): prefill_timer(self._decoder, self._base, tokens)
            for tokens in self._sizes.prompts
        }
        parameters = self._base.parameters(self._model.weights.shape)
        return {
            tokens: {
                "seconds": seconds,
                "tokens_per_second": int(tokens) / seconds,
                "multiply_adds_per_second": int(tokens) * parameters / seconds,
            }
            for (_, tokens), seconds in medians(interleaved(jobs, _REPEATS, until)).items()
        }

    def _graphs(self, until: float) -> dict[str, Any]:
        """Return steps as graphs and without, and what a further graph takes."""
        weights, cached = self._model.weights, self._sizes.cached
        cache = KVCache(weights.shape, cached + 65, weights.dtype, weights.device)
        for tensor in cache.tensors():
            tensor.zero_()
        assert isinstance(weights, PyTorchWeights)
        eager = PyTorchDecoder(weights, cache)
        jobs = {
            ("step", "eager"): decode_timer(eager, self._base, 1, cached),
            ("step", "served"): decode_timer(self._decoder, self._base, 1, cached),
        }
        seconds = medians(interleaved(jobs, _REPEATS, until))
        if len(seconds) < len(jobs):
            return {}
        return {
            "eager_seconds": seconds["step", "eager"],
            "seconds": seconds["step", "served"],
            "speed_up": seconds["step", "eager"] / seconds["step", "served"],
            **self._first_step(),
        }

    def _first_step(self) -> dict[str, float]:
        """Return seconds and bytes of the first step of a variant, which records it."""
        cuda = self._model.weights.device.type == "cuda"
        spec = width_spec(self._model.weights.shape, 0.75)
        cache = self._decoder.cache.open()
        assert cache.reserve(2)
        before = torch.cuda.memory_reserved() if cuda else 0
        started = time.perf_counter()
        self._decoder.argmax(self._decoder.forward([Segment([TOKEN_ID], cache, spec)]))
        seconds = time.perf_counter() - started
        cache.close()
        after = torch.cuda.memory_reserved() if cuda else 0
        return {"first_step_seconds": seconds, "first_step_bytes": after - before}

    def _variants(self, until: float) -> dict[str, Any]:
        """Return the speed-up of narrow and shallow variants over their reduction of bytes."""
        shape, rows = self._model.weights.shape, self._sizes.rows
        skipped = list(range(shape.layers // 4, 2 * (shape.layers // 4)))
        specs: dict[str, VariantSpec] = {BASE: self._base}
        specs |= {spec.name: spec for spec in (width_spec(shape, 0.5), depth_spec(shape, skipped))}
        cached = self._sizes.cached
        jobs = {
            (name, str(count)): decode_timer(self._decoder, spec, count, cached)
            for name, spec in specs.items()
            for count in (rows[0], rows[-1])
        }
        found = interleaved(jobs, _REPEATS, until)
        if len(found) < len(jobs):
            return {}
        return variant_figures(self._model, specs, found, cached)

    def _readers(self, until: float) -> dict[str, Any]:
        """Return seconds to the first token by reader and prompt, and the speed-up over `full`."""
        jobs = {
            (name, str(tokens)): reading_timer(self._model, self._decoder, reader, tokens)
            for tokens in self._sizes.prompts
            for name, reader in [(_FULL, None), *self._model.readers.items()]
        }
        series = interleaved(jobs, _REPEATS, until)
        shape = self._model.weights.shape
        found: dict[str, Any] = {}
        for (name, tokens), seconds in series.items():
            full = series[_FULL, tokens][: len(seconds)]
            reader, size = self._model.readers.get(name), int(tokens)
            in_full = size if reader is None else min(size, reader.ends)
            found.setdefault(name, {})[tokens] = {
                "seconds": median(seconds),
                "speed_up": median(a / b for a, b in zip(full, seconds, strict=True)),
                "compute": 1.0 if reader is None else reader.cost(shape, size, in_full),
            }
        return found
