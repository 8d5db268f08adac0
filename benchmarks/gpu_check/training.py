"""How quickly the maps of a reader are trained on the device, in the time that is left."""

import time
from typing import Any

import torch

from benchmarks.gpu_check.shapes import (
    READER_DEPTHS,
    Sizes,
    random_located,
    random_maps,
    reader_of,
)
from pruners.architecture import LocatedModel
from pruners.distill.reader_maps import DistilOptions, distil_maps
from pruners.evaluation.reading_quality import PromptAnswer

_FIRST = 12  # pairs of the first training
_USED = 0.7  # of the time that is left, by the speed of the first training


def train(sizes: Sizes, device: torch.device, end: float) -> dict[str, Any]:
    """Train until about the time `end` of the monotonic clock, and return how quick it was.

    A first short training says how many prompts the second has time for.
    """
    located = random_located(sizes.config, device)
    first = _timed(located, sizes, _FIRST)
    left = end - time.monotonic()
    count = min(sizes.pairs, int(_USED * left / first["seconds"] * _FIRST))
    return _timed(located, sizes, count) if count > _FIRST else first


def _timed(located: LocatedModel, sizes: Sizes, count: int) -> dict[str, Any]:
    """Train on some prompts of random tokens with their answers."""
    generator = torch.Generator().manual_seed(0)
    answer = sizes.taught // 8

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(sizes.config.vocab_size, (length,), generator=generator)

    pairs = [PromptAnswer(tokens(sizes.taught), tokens(answer)) for _ in range(count)]
    reader = reader_of(located.shape, READER_DEPTHS[0])
    maps = random_maps(located.shape, reader.depth, located.embed.weight.device)
    started = time.monotonic()
    distil_maps(located, maps, pairs, [reader], DistilOptions(epochs=1))
    seconds = time.monotonic() - started
    read = count * (sizes.taught + answer)
    return {"pairs": count, "tokens": read, "seconds": seconds, "tokens_per_second": read / seconds}
