"""Save a sliced model to a folder and load it again.

`trimtab_slice.json` holds the width of each layer and names the loader. If the model's
configuration describes the slice (equal widths in all layers, or fewer layers), `from_pretrained`
of `transformers` can load the folder. Otherwise the weights are in `trimtab_slice.safetensors`,
where `from_pretrained` does not find them: it would fill missing weights with random numbers.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights  # type: ignore[import-untyped]
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruners.architecture import locate
from pruners.data.readers import ReadError, read_json
from pruners.realization.order import identity_order
from pruners.realization.slice import SliceError, slice_model
from pruners.support.files import FolderKind, replace_folder, write_json
from pruners.support.fingerprint import fingerprint
from pruners.variant import VariantSpec

SCHEMA = 2
MANIFEST = "trimtab_slice.json"
WEIGHTS = "trimtab_slice.safetensors"
SLICE = FolderKind(
    "slice",
    markers=(MANIFEST,),
    allowed=(
        MANIFEST, WEIGHTS, "config.json", "generation_config.json", "model*.safetensors",
        "model.safetensors.index.json", "tokenizer*", "chat_template.jinja", "merges.txt",
        "vocab.json", "vocab.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model",
        "additional_chat_templates/", "additional_chat_templates/*.jinja",
    ),
)  # fmt: skip
_TRANSFORMERS_LOADER = "transformers from_pretrained"
_SLICE_LOADER = "pruners.realization.slice_folder.load_slice"


def save_slice(
    model: PreTrainedModel,
    spec: VariantSpec,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write the result of `slice_model` and its tokenizer to a folder, atomically.

    `spec` is the variant that the model was cut to. An earlier slice in `folder` is replaced.
    Raises `TargetError` if something else is there, `SliceError` if `model` does not fit `spec`.
    """
    spec = _without_skipped_layers(spec)
    biases = _added_biases(model, _build_slice(type(model), model.config, spec))
    if _shapes(model) != _shapes(_build_slice(type(model), model.config, spec, biases)):
        raise SliceError(f"the model is not the slice that variant '{spec.name}' describes")
    plain = _shapes(model) == _shapes(_build_empty(type(model), model.config))
    manifest = {
        "schema": SCHEMA,
        "loader": _TRANSFORMERS_LOADER if plain else _SLICE_LOADER,
        "variant": spec.name,
        "class": type(model).__name__,
        "fingerprint": fingerprint(model),
        "kv_groups": list(spec.kv_groups),
        "ffn": list(spec.ffn),
        "biases": biases,
    }
    with replace_folder(folder, SLICE) as staging:
        if plain:
            model.save_pretrained(staging)
        else:
            model.config.save_pretrained(staging)
            if model.can_generate():
                model.generation_config.save_pretrained(staging)
            tensors = {name: t.detach().contiguous() for name, t in _tensors(model).items()}
            save_file(tensors, staging / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(staging)
        write_json(staging / MANIFEST, manifest)


def load_slice(folder: Path) -> PreTrainedModel:
    """Load a folder of `save_slice`, for evaluation. Raises `SliceError`."""
    manifest, spec, model_class = _read_manifest(folder)
    try:
        if manifest["loader"] == _TRANSFORMERS_LOADER:
            model = model_class.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True
            )
        else:
            config = model_class.config_class.from_pretrained(folder, trust_remote_code=False)
            model = _build_slice(model_class, config, spec, manifest["biases"])
            _load_weights(model, load_file(folder / WEIGHTS))
            if model.can_generate():
                model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    except FileNotFoundError as error:
        raise SliceError(f"slice {folder}: {WEIGHTS} is missing") from error
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise SliceError(f"slice {folder} is damaged: {str(error).splitlines()[0]}") from error
    if fingerprint(model) != manifest["fingerprint"]:
        raise SliceError(f"slice {folder} is damaged: its weights are not those that were saved")
    return model.eval()


def _read_manifest(folder: Path) -> tuple[dict[str, Any], VariantSpec, type[PreTrainedModel]]:
    if not (folder / MANIFEST).exists():
        raise SliceError(f"{folder} is no slice: it has no {MANIFEST}")
    try:
        manifest = read_json(folder / MANIFEST)
    except ReadError as error:
        raise SliceError(f"slice {folder} is damaged: {error}") from error
    try:
        if manifest["schema"] != SCHEMA:
            raise SliceError(
                f"slice {folder} has schema {manifest['schema']}, this version reads {SCHEMA}"
            )
        spec = VariantSpec(
            manifest["variant"], tuple(manifest["kv_groups"]), tuple(manifest["ffn"])
        )
        model_class: Any = getattr(transformers, manifest["class"], None)
        complete = {"loader", "fingerprint", "biases"} <= manifest.keys()
    except (KeyError, TypeError, AttributeError) as error:
        raise SliceError(f"slice {folder} is damaged: {MANIFEST}: {error!r}") from error
    if not complete or not _is_model(model_class):
        raise SliceError(f"slice {folder} is damaged: {MANIFEST} names no loader or model")
    return manifest, spec, model_class


def _is_model(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, PreTrainedModel)


def _without_skipped_layers(spec: VariantSpec) -> VariantSpec:
    """Return the variant's widths without the layers that it skips."""
    kept = [pair for pair in zip(spec.kv_groups, spec.ffn, strict=True) if any(pair)]
    return VariantSpec(spec.name, tuple(kv for kv, _ in kept), tuple(ffn for _, ffn in kept))


def _build_empty(model_class: type[PreTrainedModel], config: object) -> PreTrainedModel:
    """Build a model from its configuration with real buffers, but parameters on the meta device."""
    with init_empty_weights():
        model = model_class(copy.deepcopy(config))
    model.tie_weights()
    return model


def _build_slice(
    model_class: type[PreTrainedModel],
    config: object,
    spec: VariantSpec,
    biases: Sequence[str] = (),
) -> PreTrainedModel:
    """Build a slice's modules with parameters on the meta device.

    `biases` are the names of those that merged corrections have added. Raises `ValueError` if the
    configuration and the spec do not fit each other.
    """
    located = locate(_build_empty(model_class, config))
    model = slice_model(located, spec, identity_order(located.shape))
    for name in biases:
        linear = model.get_submodule(name.removesuffix(".bias"))
        if not isinstance(linear, torch.nn.Linear):
            raise ValueError(f"{name} is not the bias of a projection")
        linear.bias = torch.nn.Parameter(torch.empty(linear.out_features, device="meta"))
    return model


def _added_biases(model: PreTrainedModel, rebuilt: PreTrainedModel) -> list[str]:
    """Return the names of biases that the model has and the plain slice does not."""
    added = set(_shapes(model)) - set(_shapes(rebuilt))
    return sorted(name for name in added if name.endswith(".bias"))


def _tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return every tensor to be stored; a tied tensor appears once, under its first name."""
    named = model.state_dict(keep_vars=True)
    return {name: named[name] for name in dict.fromkeys(_first_names(model).values())}


def _first_names(model: PreTrainedModel) -> dict[str, str]:
    """Return for each tensor's name the name that it is stored under."""
    named = model.state_dict(keep_vars=True)
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named.items()}


def _shapes(model: PreTrainedModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in _tensors(model).items()}


def _load_weights(model: PreTrainedModel, stored: dict[str, torch.Tensor]) -> None:
    if _shapes(model) != {name: tensor.shape for name, tensor in stored.items()}:
        raise SliceError(f"{WEIGHTS} and {MANIFEST} do not belong together")
    names = _first_names(model)
    model.load_state_dict({name: stored[first] for name, first in names.items()}, assign=True)
    model.tie_weights()
