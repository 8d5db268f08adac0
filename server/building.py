"""`trimtab build`: hands the offline half the engine's own samples and a loaded model."""

from dataclasses import asdict
from pathlib import Path

import torch

from pruners.artefact import Artefact
from pruners.build import Sources, build
from pruners.journal import Journal
from pruners.progress import bars
from pruners.recipe import Recipe
from pruners.rows import rows_hash
from pruners.sources import Corpus
from server.engine.load import load_tokenizer, load_transformers
from server.engine.source import model_name, resolve_model
from server.selftext import OwnText

SELF = "sampled from the base at temperature 1"
ROW = 256
"""Tokens of a calibration row; held-out rows are as long as the KV budgets need."""
_HELD_OUT_ROWS = 8

Rows = list[torch.Tensor]


def build_artefact(model: str, out: Path, corpus: Corpus | None, recipe: Recipe) -> Artefact:
    """Builds variants of a model into the folder `out`, calibrated on the user's text or its own.

    An interrupted call goes on where it stopped, from a folder beside `out`. Raises `BuildError`,
    `SourceError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    folder = resolve_model(model)
    longest = 2 * max(recipe.kv_budgets, default=ROW)
    with bars() as progress:
        identity = {"model": str(folder), "recipe": asdict(recipe), "build": 1}
        if corpus is not None:
            calibration, held_out = _text_rows(folder, corpus, recipe, longest)
            identity["text"] = [rows_hash(rows) for rows in (calibration, held_out)]
        journal = Journal(out.parent / f".{out.name}-build", identity)
        if corpus is None:
            text = OwnText(folder, journal, progress)
            calibration = text.rows(-(-recipe.calibration_tokens // ROW), ROW, recipe.seed)
            held_out = text.rows(_HELD_OUT_ROWS, longest, recipe.seed + 1)
            del text  # two copies of the weights are enough, and building needs the other one
        source = SELF if corpus is None else corpus.name
        artefact = build(
            load_transformers(folder, torch.float32),
            model_name(model),
            Sources(calibration, held_out, source, f"{source}, other rows"),
            recipe,
            journal,
            progress,
        )
    artefact.save(out)
    journal.close()
    return artefact


def _text_rows(folder: Path, corpus: Corpus, recipe: Recipe, longest: int) -> tuple[Rows, Rows]:
    """The first three quarters of the text calibrate, the rest is held out."""
    tokenizer = load_tokenizer(folder)
    first, rest = corpus.split(0.75)
    calibration = first.rows(tokenizer, ROW, recipe.calibration_tokens)
    return calibration, rest.rows(tokenizer, longest, _HELD_OUT_ROWS * longest)
