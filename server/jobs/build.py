"""`trimtab build`: makes an artefact of a model, calibrated on given or self-generated text."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import PreTrainedTokenizerBase

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
from server.jobs.job_setup import SELF_GENERATED, TokenRows, checkpoint_folder
from server.jobs.readers import GivenText, ReadersRequest, make_reading_text
from server.jobs.self_generated_text import SelfGeneratedText
from server.jobs.step_timing import block_latency

_MIN_ROW_TOKENS = 512  # of held-out rows; KV budgets are measured on rows of twice their length
_HELD_OUT_ROWS = 8
_MIN_CALIBRATION_ROWS = 8  # some of them are held out from fits
_CALIBRATION_SHARE = 0.75  # of a given text; the rest is held out


def build_artefact(
    model: str,
    out: Path,
    corpus: Corpus | None,
    recipe: Recipe,
    device: torch.device | None = None,
) -> Artefact:
    """Build variants of a model into the folder `out`.

    They are calibrated on `corpus`, or else on text that the model writes. `device` computes one
    layer at a time; None stands for the CPU. An interrupted call goes on where it stopped, from a
    folder beside `out`; a refused one leaves nothing. Raises `TargetError`, `BuildError`,
    `SourceError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    unfinished = checkpoint_folder(out, "build")
    check_folder(out, ARTEFACT)
    check_folder(unfinished, CHECKPOINT)
    source = resolve_model(model)
    recipe.check(locate(load_outline(source)).shape)  # before minutes of sampling
    identity: dict[str, Any] = {"model": str(source), "recipe": asdict(recipe), "build": 1}
    rows = None
    if corpus is not None:
        rows = _corpus_rows(source, corpus, recipe)
        identity["text"] = [hash_rows(rows.calibration), hash_rows(rows.held_out)]
    with progress_bars() as progress, Checkpoint(unfinished, identity) as checkpoint:
        if rows is None:
            rows = _self_generated_rows(source, recipe, checkpoint, progress)
        latency = None
        if recipe.budget == "latency":
            latency = _measure_latency(source, checkpoint, progress)
        artefact = build(
            load_transformers(source, torch.float32),
            model_name(model),
            rows,
            recipe,
            BuildOptions(checkpoint, progress, device, latency),
        )
        artefact.save(out)
    return artefact


def _row_tokens(recipe: Recipe) -> tuple[int, int]:
    """Return how many tokens a calibration row and a held-out row have."""
    held_out = 2 * max(recipe.kv_budgets, default=_MIN_ROW_TOKENS // 2)
    return min(held_out, recipe.calibration_tokens // _MIN_CALIBRATION_ROWS), held_out


def _corpus_rows(source: Path, corpus: Corpus, recipe: Recipe) -> BuildRows:
    """Return rows of a text: the first part calibrates, the rest is held out."""
    calibration_row, held_out_row = _row_tokens(recipe)
    tokenizer = load_tokenizer(source)
    first, rest = corpus.split(_CALIBRATION_SHARE)
    rows = _build_rows(
        first.rows(tokenizer, calibration_row, recipe.calibration_tokens),
        rest.rows(tokenizer, held_out_row, _HELD_OUT_ROWS * held_out_row),
        corpus.name,
    )
    given = first.rows(tokenizer, held_out_row, recipe.reader_tokens)
    return _with_reading_text(rows, given, tokenizer, source, recipe)


def _self_generated_rows(
    source: Path, recipe: Recipe, checkpoint: Checkpoint, progress: Progress
) -> BuildRows:
    """Return rows that the model writes. It is loaded for this call alone."""
    calibration_row, held_out_row = _row_tokens(recipe)
    text = SelfGeneratedText(source, checkpoint, progress)
    count = _HELD_OUT_ROWS + -(-recipe.calibration_tokens // held_out_row)
    rows = text.rows(count, held_out_row, recipe.seed)
    calibration = [part for row in rows[_HELD_OUT_ROWS:] for part in row.split(calibration_row)]
    built = _build_rows(calibration, rows[:_HELD_OUT_ROWS], SELF_GENERATED)
    given = rows[_HELD_OUT_ROWS:]
    return _with_reading_text(built, given, load_tokenizer(source), source, recipe)


def _with_reading_text(
    rows: BuildRows,
    given: TokenRows,
    tokenizer: PreTrainedTokenizerBase,
    source: Path,
    recipe: Recipe,
) -> BuildRows:
    vocab = locate(load_outline(source)).shape.vocab
    text = GivenText(given, list(rows.held_out), rows.calibration_source)
    request = ReadersRequest(recipe.readers, recipe.reader_tokens, seed=recipe.seed)
    return replace(rows, reading=make_reading_text(tokenizer, vocab, text, request))


def _build_rows(calibration: TokenRows, held_out: TokenRows, name: str) -> BuildRows:
    return BuildRows(calibration, held_out, name, f"{name}, other rows")


def _measure_latency(source: Path, checkpoint: Checkpoint, progress: Progress) -> LatencyCost:
    """Measure how long blocks of each width take.

    A build that goes on reads what was measured before: it must not mix two measurements.
    """

    def measure() -> dict[str, Any]:
        model = load_model(source, source.name, device=preferred_device())  # as it is served
        return asdict(block_latency(model, progress=progress))

    measured = checkpoint.get_or_compute("latency", measure)
    blocks: dict[Part, dict[int, float]] = {
        part: {int(width): seconds for width, seconds in measured["blocks"][part].items()}
        for part in PARTS
    }
    return LatencyCost(measured["rest"], blocks)
