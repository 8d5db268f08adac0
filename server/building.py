"""`trimtab build`: hands the offline half the engine's own samples and a loaded model."""

from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pruners.artefact import Artefact
from pruners.build import BuildError, Recipe, build
from pruners.rows import text_rows
from server.app import build_runner
from server.engine.load import LoadedModel, load_model, load_transformers
from server.engine.source import model_name, resolve_model
from server.selftext import sample_rows
from server.settings import Settings

_ROW = 256  # tokens of a calibration row; held-out rows are as long as the KV budgets need
_HELD_OUT_ROWS = 8
_BATCH = 32

Rows = list[torch.Tensor]


def build_artefact(model: str, text: Path | None, recipe: Recipe) -> Artefact:
    """Builds variants of a model, calibrated on its own samples or on the user's text.

    Raises `BuildError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    folder = resolve_model(model)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        loaded = load_model(folder, model_name(model), torch.float32, None, None)
        longest = min(2 * max(recipe.kv_budgets), loaded.weights.context)
        if text is None:
            source = "sampled from the base at temperature 1"
            calibration, held_out = _own_rows(loaded, recipe, longest, progress)
        else:
            source = text.name
            calibration, held_out = _text_rows(loaded, text, recipe, longest)
        del loaded  # two copies of the weights are enough, and building needs the other one
        return build(
            load_transformers(folder, torch.float32),
            model_name(model),
            calibration,
            held_out,
            recipe,
            progress,
            calibration_source=source,
            held_out_source=f"{source}, other rows",
        )


def _own_rows(
    loaded: LoadedModel, recipe: Recipe, longest: int, progress: Progress
) -> tuple[Rows, Rows]:
    limits = Settings(max_running=_BATCH, kv_tokens=_BATCH * 2 * _ROW + _HELD_OUT_ROWS * longest)
    runner = build_runner(loaded, limits, None)
    count = -(-recipe.calibration_tokens // _ROW)
    calibration = sample_rows(runner, loaded, count, _ROW, recipe.seed, progress)
    held_out = sample_rows(runner, loaded, _HELD_OUT_ROWS, longest, recipe.seed + 1, progress)
    return calibration, held_out


def _text_rows(loaded: LoadedModel, text: Path, recipe: Recipe, longest: int) -> tuple[Rows, Rows]:
    """The first three quarters of the text calibrate, the rest is held out."""
    try:
        words = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BuildError(f"cannot read {text}: {error}") from error
    cut = len(words) * 3 // 4
    calibration = text_rows(loaded.tokenizer, words[:cut], _ROW, recipe.calibration_tokens)
    limit = _HELD_OUT_ROWS * longest
    return calibration, text_rows(loaded.tokenizer, words[cut:], longest, limit)
