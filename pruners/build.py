"""From a base and calibration rows to an artefact: rank, select, specify, measure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from rich.progress import Progress
from torch import nn

from pruners.architecture import Decoder, Shape, locate
from pruners.artefact import Artefact, Quality
from pruners.calibration import calibrate
from pruners.depth import DepthOrder, greedy_layers
from pruners.evaluate import Reader, evaluate, reading
from pruners.fingerprint import fingerprint
from pruners.importance import ActivationNorm, rank
from pruners.kv import Streaming
from pruners.kv.evict import Eviction, evicted
from pruners.mask import mask
from pruners.rows import count, rows_hash, sample
from pruners.variant import VariantSpec, both, depth_spec, width_spec


class BuildError(ValueError):
    """The recipe or the rows cannot give an artefact of this model. One clear line."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build. It is written into the artefact, and with the same rows gives the same one.

    `ffn_keep` are shares of FFN neurons, `skip_layers` numbers of layers, `mixed` pairs of both;
    `kv_budgets` are in tokens, measured on the base over rows of twice their length.
    `calibration_tokens` rank the neurons; `selection_tokens` of the same rows choose the layers.
    """

    ffn_keep: tuple[float, ...] = (0.875, 0.75, 0.5)
    skip_layers: tuple[int, ...] = (3, 6)
    mixed: tuple[tuple[int, float], ...] = ((6, 0.75),)
    kv_budgets: tuple[int, ...] = (512, 256)
    calibration_tokens: int = 24_576
    selection_tokens: int = 2_500
    seed: int = 0

    def check(self, shape: Shape) -> None:
        """Raises `BuildError` if a model of this shape cannot be cut so."""
        for keep in (*self.ffn_keep, *(keep for _, keep in self.mixed)):
            if not 0 < keep < 1:
                raise BuildError(f"recipe: ffn_keep {keep:g} is not between 0 and 1")
        for skip in self._skips():
            if not 0 < skip < shape.layers:
                raise BuildError(f"recipe: cannot skip {skip} of the model's {shape.layers} layers")
        for budget in self.kv_budgets:
            try:
                _eviction(budget)
            except ValueError as error:
                raise BuildError(f"recipe: {error}") from error
        if min(self.calibration_tokens, self.selection_tokens) < 2:
            raise BuildError("recipe: calibration and selection need at least 2 tokens")

    def deepest(self) -> int:
        """Layers to put in order: as many as any variant skips."""
        return max(self._skips(), default=0)

    def specs(self, shape: Shape, skip_order: Sequence[int]) -> tuple[VariantSpec, ...]:
        """The variants, given which layers go first."""
        widths = [width_spec(shape, keep) for keep in self.ffn_keep]
        depths = [depth_spec(shape, list(skip_order[:skip])) for skip in self.skip_layers]
        mixed = [
            both(depth_spec(shape, list(skip_order[:skip])), width_spec(shape, keep))
            for skip, keep in self.mixed
        ]
        return (*widths, *depths, *mixed)

    def _skips(self) -> list[int]:
        return [*self.skip_layers, *(skip for skip, _ in self.mixed)]


def build(
    model: nn.Module,
    model_name: str,
    calibration_rows: Sequence[torch.Tensor],
    held_out_rows: Sequence[torch.Tensor],
    recipe: Recipe,
    progress: Progress | None = None,
    *,
    calibration_source: str,
    held_out_source: str,
) -> Artefact:
    """Ranks, selects and measures the recipe's variants of a `transformers` causal LM.

    Rows are 1-D token ids, ragged or not; the sources say in words what they are. The model is put
    in evaluation mode and is otherwise left as it was. Raises `BuildError` if the recipe does not
    fit or held-out rows were calibrated on, `UnsupportedModelError` for an unknown family.
    """
    decoder = locate(model)
    recipe.check(decoder.shape)
    _check_rows(calibration_rows, held_out_rows)
    model.eval()

    calibration = sample(calibration_rows, recipe.calibration_tokens, recipe.seed)
    selection = sample(calibration_rows, recipe.selection_tokens, recipe.seed + 1)
    order = rank(decoder, calibrate(decoder, calibration, progress), ActivationNorm())
    depth = DepthOrder((), ())
    if recipe.deepest():
        depth = greedy_layers(decoder, selection, recipe.deepest(), progress)
    specs = recipe.specs(decoder.shape, depth.layers)
    masks: dict[str, Reader] = {
        spec.name: reading(decoder, partial(mask, decoder, spec, order)) for spec in specs
    }
    measured = evaluate(decoder, masks, held_out_rows, progress=progress)
    budgets = {b: _budget_quality(decoder, b, held_out_rows, progress) for b in recipe.kv_budgets}

    return Artefact(
        model_name=model_name,
        fingerprint=fingerprint(model),
        shape=decoder.shape,
        ffn_order=order.ffn.int(),
        kv_order=order.kv.int(),
        variants=specs,
        quality=measured.quality,
        kv_quality={budget: quality for budget, quality in budgets.items() if quality is not None},
        provenance={
            "versions": {name: _version(name) for name in ("trimtab", "torch", "transformers")},
            "recipe": asdict(recipe),
            "importance": ActivationNorm.__name__,
            "calibration": _describe(calibration, calibration_source),
            "selection": _describe(selection, calibration_source),
            "skip_order": {"layers": list(depth.layers), "kl": list(depth.kl)},
        },
        evaluation={
            **_describe(held_out_rows, held_out_source),
            "window": max(map(len, held_out_rows)),
            "predictions": measured.tokens,
            "base_perplexity": measured.base_perplexity,
        },
    )


def _budget_quality(
    decoder: Decoder, budget: int, rows: Sequence[torch.Tensor], progress: Progress | None
) -> Quality | None:
    """What `budget` tokens of prompt lose over the next as many; None without rows that long."""
    long = [row[: 2 * budget] for row in rows if len(row) >= 2 * budget]
    if not long:
        return None
    held = partial(evicted, decoder, prompt=budget, eviction=_eviction(budget))
    return evaluate(decoder, {"kv": held}, long, budget, progress).quality["kv"]


def _eviction(budget: int) -> Eviction:
    """Sinks and the most recent tokens, as the engine serves them."""
    return Eviction(Streaming(), budget, interval=max(1, budget // 32), recent=0)


def _check_rows(calibration: Sequence[torch.Tensor], held_out: Sequence[torch.Tensor]) -> None:
    for what, rows in (("calibration", calibration), ("held-out", held_out)):
        if count(rows) < 2:
            raise BuildError(f"{what} rows hold no text to predict; give at least 2 tokens")
    seen = {rows_hash([row]) for row in calibration}
    if any(rows_hash([row]) in seen for row in held_out):
        raise BuildError("a held-out row is also a calibration row; measure on other text")


def _describe(rows: Sequence[torch.Tensor], source: str) -> dict[str, Any]:
    return {"source": source, "rows": len(rows), "tokens": count(rows), "hash": rows_hash(rows)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "not installed"
