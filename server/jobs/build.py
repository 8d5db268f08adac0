"""`trimtab build`: hands the offline half the engine's own samples and a loaded model."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from pruners.allocation import LatencyCost
from pruners.architecture import locate
from pruners.artefact.folder import ARTEFACT, Artefact
from pruners.builder.pipeline import build
from pruners.builder.recipe import Recipe
from pruners.builder.steps import BuildOptions, BuildRows
from pruners.data.corpus import Corpus
from pruners.data.rows import hash_rows
from pruners.support.checkpoint import CHECKPOINT, Checkpoint
from pruners.support.files import check_folder
from pruners.support.progress import progress_bars
from pruners.variant import PARTS, Part
from server.engine.loading.load import (
    load_model,
    load_outline,
    load_tokenizer,
    load_transformers,
    preferred_device,
)
from server.engine.loading.source import model_name, resolve_model
from server.jobs.self_generated_text import SelfGeneratedText
from server.jobs.step_timing import block_latency

SELF = "sampled from the base at temperature 1"
_ROW = 512
"""Tokens of a row at the least; more where KV budgets are measured, which takes twice as many."""
_HELD_OUT_ROWS = 8
_PIECES = 8  # calibration is no fewer rows, since some of them are held out from fits

Rows = list[torch.Tensor]


def build_artefact(
    model: str,
    out: Path,
    corpus: Corpus | None,
    recipe: Recipe,
    device: torch.device | None = None,
) -> Artefact:
    """Builds variants of a model into the folder `out`, calibrated on the user's text or its own.

    Layers are computed on `device`, one at a time, or else on the CPU. An interrupted call goes on
    where it stopped, from a folder beside `out`; a refused one leaves nothing. Raises
    `TargetError`, `BuildError`, `SourceError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    check_folder(out, ARTEFACT)
    check_folder(_checkpoint(out), CHECKPOINT)
    folder = resolve_model(model)
    recipe.check(locate(load_outline(folder)).shape)  # before minutes of sampling
    longest = 2 * max(recipe.kv_budgets, default=_ROW // 2)
    piece = min(longest, recipe.calibration_tokens // _PIECES)
    identity = {"model": str(folder), "recipe": asdict(recipe), "build": 1}
    if corpus is not None:
        calibration, held_out = _text_rows(folder, corpus, recipe, piece, longest)
        identity["text"] = [hash_rows(rows) for rows in (calibration, held_out)]
    with progress_bars() as progress, Checkpoint(_checkpoint(out), identity) as checkpoint:
        if corpus is None:
            text = SelfGeneratedText(folder, checkpoint, progress)
            number = _HELD_OUT_ROWS + -(-recipe.calibration_tokens // longest)
            rows = text.rows(number, longest, recipe.seed)
            held_out = rows[:_HELD_OUT_ROWS]
            calibration = [p for row in rows[_HELD_OUT_ROWS:] for p in row.split(piece)]
            del text  # two copies of the weights are enough, and building needs the other one
        seconds = _seconds(folder, checkpoint, progress) if recipe.budget == "latency" else None
        source = SELF if corpus is None else corpus.name
        artefact = build(
            load_transformers(folder, torch.float32),
            model_name(model),
            BuildRows(calibration, held_out, source, f"{source}, other rows"),
            recipe,
            BuildOptions(checkpoint, progress, device, seconds),
        )
        artefact.save(out)
    return artefact


def _checkpoint(out: Path) -> Path:
    return out.parent / f".{out.name}-build"


def _seconds(folder: Path, checkpoint: Checkpoint, progress: Progress) -> LatencyCost:
    """Measured once: a build that goes on must not choose by another clock."""

    def measure() -> dict[str, Any]:
        model = load_model(folder, folder.name, device=preferred_device())  # as it is served
        return asdict(block_latency(model, progress=progress))

    noted = checkpoint.get_or_compute("latency", measure)
    blocks: dict[Part, dict[int, float]] = {
        part: {int(width): seconds for width, seconds in noted["blocks"][part].items()}
        for part in PARTS
    }
    return LatencyCost(noted["rest"], blocks)


def _text_rows(
    folder: Path, corpus: Corpus, recipe: Recipe, piece: int, longest: int
) -> tuple[Rows, Rows]:
    """The first three quarters of the text calibrate, the rest is held out."""
    tokenizer = load_tokenizer(folder)
    first, rest = corpus.split(0.75)
    calibration = first.rows(tokenizer, piece, recipe.calibration_tokens)
    return calibration, rest.rows(tokenizer, longest, _HELD_OUT_ROWS * longest)
