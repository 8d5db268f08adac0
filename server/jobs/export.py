"""`trimtab export`: writes a variant as a folder that `transformers` reads."""

from pathlib import Path
from typing import TYPE_CHECKING

from pruners.artefact.folder import ArtefactError, load_artefact
from pruners.data.readers import read_json
from pruners.realization.merge_corrections import slice_with_corrections
from pruners.realization.slice_folder import MANIFEST, SLICE, save_slice
from pruners.support.files import check_folder
from pruners.variant import VariantSpec
from server.engine.loading.artefact_lookup import likely_artefact
from server.engine.loading.load import load_tokenizer
from server.engine.loading.source import model_name, resolve_model
from server.jobs.job_setup import find_variants, load_base

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_variant(model: str, folder: Path | None, variant: str, out: Path) -> str:
    """Write a variant with its corrections merged, and the tokenizer, into the folder `out`.

    Return the name of what loads it. Raises `TargetError`, `ArtefactError`, `SliceError`,
    `ModelSourceError` or `UnsupportedModelError`.
    """
    check_folder(out, SLICE)
    smaller, spec = merged_variant(model, folder, variant)
    save_slice(smaller, spec, out, load_tokenizer(resolve_model(model)))
    loader: str = read_json(out / MANIFEST)["loader"]
    return loader


def merged_variant(
    model: str, folder: Path | None, variant: str
) -> tuple["PreTrainedModel", VariantSpec]:
    """Return a variant as a `transformers` model in fp32, its corrections merged.

    `folder` is the artefact; None stands for the shipped or the learned one. Raises
    `ArtefactError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    folder = folder or likely_artefact(model_name(model))
    if folder is None:
        raise ArtefactError(
            f"no artefact comes with {model} or is learned; name one with --artefact"
        )
    artefact = load_artefact(folder)
    (spec,) = find_variants(artefact, [variant], f"artefact {folder}")
    located = load_base(resolve_model(model), artefact)
    corrections = artefact.corrections.get(variant, {})
    return slice_with_corrections(located, spec, artefact.order, corrections), spec
