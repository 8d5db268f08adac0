"""`trimtab export`: a variant as a folder that `transformers` reads."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pruners.architecture import locate
from pruners.artefact.folder import ArtefactError, load_artefact
from pruners.data.readers import read_json
from pruners.realization.merge_corrections import slice_with_corrections
from pruners.realization.slice_folder import MANIFEST, SLICE, save_slice
from pruners.support.files import check_folder
from pruners.support.fingerprint import fingerprint
from pruners.variant import VariantSpec
from server.engine.loading.artefact_lookup import shipped_artefact
from server.engine.loading.load import load_tokenizer, load_transformers
from server.engine.loading.source import model_name, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def export_variant(model: str, folder: Path | None, variant: str, out: Path) -> str:
    """Writes the variant with its corrections merged, and the tokenizer; says what loads it.

    Raises `TargetError`, `ArtefactError`, `SliceError`, `ModelSourceError` or
    `UnsupportedModelError`.
    """
    check_folder(out, SLICE)
    smaller, spec = merged_variant(model, folder, variant)
    save_slice(smaller, spec, out, load_tokenizer(resolve_model(model)))
    loader: str = read_json(out / MANIFEST)["loader"]
    return loader


def merged_variant(
    model: str, folder: Path | None, variant: str
) -> tuple["PreTrainedModel", VariantSpec]:
    """A variant of an artefact, by default the shipped one, as a `transformers` model in fp32.

    Raises `ArtefactError`, `ModelSourceError` or `UnsupportedModelError`.
    """
    folder = folder or shipped_artefact(model_name(model))
    if folder is None:
        raise ArtefactError(f"no artefact comes with {model}; name one with --artefact")
    artefact = load_artefact(folder)
    specs = {spec.name: spec for spec in artefact.variants}
    if variant not in specs:
        raise ArtefactError(
            f"artefact {folder} has no variant '{variant}'; it has {', '.join(specs)}"
        )
    base = load_transformers(resolve_model(model), torch.float32)
    artefact.check_base(fingerprint(base))
    own = artefact.corrections.get(variant, {})
    return slice_with_corrections(locate(base), specs[variant], artefact.order, own), specs[variant]
