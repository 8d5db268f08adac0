"""The models on this machine: what they are, and whether they fit into its memory."""

import math
from dataclasses import dataclass
from pathlib import Path

from pruners.architecture import SERVED_FAMILIES, UnsupportedModelError
from server.engine.loading.checkpoint.description import read_config
from server.engine.loading.gguf_file import open_gguf, part_paths
from server.engine.loading.gguf_file.config import config_of
from server.engine.loading.gguf_file.tensors import tensor_names
from server.engine.loading.load import preferred_device
from server.engine.loading.memory_check import free_memory, serving_on
from server.engine.loading.memory_estimate import (
    Serving,
    StoredModel,
    StoredTensor,
    memory_estimate,
)
from server.engine.loading.model_files import stored_tensors
from server.engine.loading.source import DEFAULT_MODEL, default_if_here
from server.engine.loading.sources.hub import cached_models
from server.engine.loading.sources.ollama import ollama_models


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a model is and what it takes. Sizes are in bytes.

    `bits` are those of a parameter in its files. `needed` is what it takes with the smallest cache
    that a server starts with, and `fits` whether that is free. `tokens` is how long a text may then
    be.
    """

    family: str
    file_bytes: int
    bits: float
    needed: int
    fits: bool
    tokens: int


def models_here() -> dict[str, Path]:
    """Return the folder or GGUF file of each model on this machine, by the name for `--model`."""
    default = default_if_here()
    found = {} if default is None else {DEFAULT_MODEL: default}
    ollama = {f"ollama:{name}": path for name, path in ollama_models().items()}
    return found | cached_models() | ollama


def serving_here() -> tuple[Serving, float]:
    """Return how a server serves here unless it is told otherwise, and the bytes that are free."""
    device = preferred_device()
    return serving_on(device), free_memory(device)


def summarise(path: Path, serving: Serving, free_bytes: float) -> ModelSummary:
    """Return what the model in a folder or a GGUF file is, from the headers of its files.

    Raises `UserError` for one that cannot be served.
    """
    family, stored, files = read_stored(path)
    file_bytes = sum(file.stat().st_size for file in files)
    values = sum(math.prod(tensor.shape) for tensor in stored.tensors.values())
    needed = memory_estimate(stored, serving)
    token = memory_estimate(stored, serving, 1).cache
    room = (free_bytes - needed.total + needed.cache) // token
    return ModelSummary(
        family,
        file_bytes,
        bits=8 * file_bytes / values,
        needed=needed.total,
        fits=needed.total <= free_bytes,
        tokens=int(min(room, stored.context)),
    )


def read_stored(path: Path) -> tuple[str, StoredModel, list[Path]]:
    """Return the family of a folder or a GGUF file, its tensors, and its files.

    Raises `UserError` for one that cannot be served.
    """
    return _folder(path) if path.is_dir() else _gguf(path)


def _folder(path: Path) -> tuple[str, StoredModel, list[Path]]:
    """Return the family of a folder of safetensors, its tensors, and its files."""
    config = read_config(path)
    if config.model_type not in SERVED_FAMILIES:
        raise UnsupportedModelError(f"model family '{config.model_type}' is not supported")
    found = stored_tensors(path)
    tensors = {name: StoredTensor(one.shape, one.type) for name, one in found.items()}
    files = sorted({one.file for one in found.values()})
    return config.model_type, StoredModel.of(config.to_dict(), tensors), files


def _gguf(path: Path) -> tuple[str, StoredModel, list[Path]]:
    """Return the family of a GGUF model, its tensors, and the files of its parts."""
    model = open_gguf(path)
    config = config_of(model)
    tensors = {}
    for name, stored in tensor_names(model, config).items():
        tensor = model.tensors[stored]
        shape = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        tensors[name] = StoredTensor(shape, tensor.tensor_type.name)
    return config.model_type, StoredModel.of(config.to_dict(), tensors), part_paths(path)
