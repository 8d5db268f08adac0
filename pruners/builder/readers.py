"""Readers of an artefact: their maps are fitted, and what they lose is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.progress import Progress

from pruners.architecture import LocatedModel
from pruners.artefact.table import ReaderCost, ReaderQuality
from pruners.data.rows import describe_rows
from pruners.distill.reader_maps import DistilOptions, distil_maps
from pruners.evaluation.reading_quality import (
    PromptAnswer,
    ReaderSet,
    cut_answers,
    measure_readers,
)
from pruners.reading.fit import Moments, solve_maps, sum_moments
from pruners.reading.maps import KVMaps, from_tensors
from pruners.reading.reader import PromptReader
from pruners.support.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ReadingText:
    """What readers are fitted on and measured on.

    `rows` are 1-D token ids, which `source` describes; `answers` are of other text. `kinds` int8
    `[vocab]` are the kinds of tokens. `epochs` is how often maps are trained on `pairs`, or else on
    pieces of all rows, after their fit; 0 leaves them in closed form.
    """

    rows: Sequence[torch.Tensor]
    answers: Sequence[PromptAnswer]
    kinds: torch.Tensor
    source: str
    epochs: int = 0
    pairs: Sequence[PromptAnswer] = ()


@dataclass(frozen=True, slots=True)
class FittedReaders:
    """Readers by name, their maps by depth as stored, and what was measured; by default none."""

    readers: dict[str, PromptReader] = field(default_factory=dict)
    maps: dict[int, KVMaps] = field(default_factory=dict)
    quality: dict[str, dict[str, ReaderQuality]] = field(default_factory=dict)
    cost: dict[str, ReaderCost] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)

    def provenance(self) -> dict[str, Any]:
        """Return the entry of an artefact's provenance: the text that they were fitted on."""
        return {"readers": self.text} if self.readers else {}


def fit_readers(
    located: LocatedModel,
    readers: dict[str, PromptReader],
    text: ReadingText,
    checkpoint: Checkpoint,
    progress: Progress | None = None,
) -> FittedReaders:
    """Fit the maps of all readers and measure what they lose, in 4 bits as they are stored.

    Nothing is measured on fewer than two answers. What is finished is in the checkpoint. Raises
    `ValueError` for a reader that does not fit.
    """
    if not readers:
        return FittedReaders()
    depths = sorted({reader.depth for reader in readers.values()})

    def compute() -> dict[str, torch.Tensor]:
        state = checkpoint.file_path("reader sums.safetensors")
        moments = sum_moments(located, text.rows, depths, progress, state)
        tensors: dict[str, torch.Tensor] = {}
        for depth, sums in moments.items():

            def train(depth: int = depth, sums: Moments = sums) -> dict[str, torch.Tensor]:
                maps = solve_maps(located, depth, sums)
                maps = _trained(located, maps, readers, text, checkpoint, progress)
                return maps.quantised(sums.within).to_tensors()

            part = f"reader maps {depth} of {depths}, {text.epochs} epochs"
            tensors |= checkpoint.get_or_compute_tensors(part, train)
        return tensors

    entry = f"reader maps {depths}, {text.epochs} epochs"
    maps = from_tensors(checkpoint.get_or_compute_tensors(entry, compute))
    described = describe_rows(text.rows, text.source)
    if len(text.answers) < 2:
        return FittedReaders(readers, maps, text=described)
    reader_set = ReaderSet(readers, maps, text.kinds)
    measured = measure_readers(located, reader_set, text.answers, checkpoint, progress)
    return FittedReaders(readers, maps, measured.quality, measured.cost, described)


def _trained(
    located: LocatedModel,
    maps: KVMaps,
    readers: dict[str, PromptReader],
    text: ReadingText,
    checkpoint: Checkpoint,
    progress: Progress | None,
) -> KVMaps:
    """Return the maps after the text's epochs of training for the readers of their depth."""
    if text.epochs == 0:
        return maps
    used = [reader for reader in readers.values() if reader.depth == maps.depth]
    pairs = text.pairs or cut_answers(text.rows)
    state = checkpoint.file_path(f"reader training {maps.depth}.safetensors")
    options = DistilOptions(text.kinds, text.epochs, state=state)
    return distil_maps(located, maps, pairs, used, options, progress)
