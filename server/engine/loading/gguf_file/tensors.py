"""The tensors of a GGUF file, with the names and the layout that `transformers` has for them."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.parameter_names import (
    gguf_name,
    rope_tensors,
    rotates_neighbours,
)
from server.engine.loading.gguf_file.parts import GgufModel
from server.engine.loading.gguf_file.types import tensor_type
from server.engine.loading.model_files import listing

FLOATS = ("F32", "F16", "BF16", "F64")
"""The types of tensors that are not quantised."""


def tensor_names(model: GgufModel, config: PretrainedConfig) -> dict[str, str]:
    """Return the GGUF name of each parameter of the model, after checking that all of them fit.

    Raises `UnsupportedModelError` with the name of a tensor that is missing, left over, of another
    shape or of a type that cannot be read.
    """
    family = config.model_type
    names, shapes = {}, {}
    for name, shape in _parameters(config).items():
        names[name] = gguf_name(family, name)
        shapes[names[name]] = shape
    where = model.path.name
    missing = shapes.keys() - model.tensors.keys()
    if missing:
        raise UnsupportedModelError(f"{where}: tensors missing: {listing(missing)}")
    extra = model.tensors.keys() - shapes.keys() - rope_tensors(family)
    if extra:
        why = f"not part of a '{family}' of {config.num_hidden_layers} layers"
        raise UnsupportedModelError(f"{where}: tensors {why}: {listing(extra)}")
    for name, shape in shapes.items():
        tensor = model.tensors[name]
        stored = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        if stored != shape:
            raise UnsupportedModelError(f"{where}: tensor {name} is {stored}, not {shape}")
        kind = tensor.tensor_type.name
        try:
            tensor_type(kind)
        except KeyError as error:
            reason = f"tensor {name} of type {kind} cannot be read"
            raise UnsupportedModelError(f"{where}: {reason}") from error
    return names


def stored_values(model: GgufModel, stored: str, rows: NDArray[np.int64] | slice) -> Tensor:
    """Return rows of a tensor, or numbers of a vector, dequantised exactly to fp32.

    Raises `UnsupportedModelError` for values that are not finite.
    """
    tensor = model.tensors[stored]
    data = tensor_type(tensor.tensor_type.name).values(tensor.data[rows])
    if not all(bool(end.isfinite()) for end in data.aminmax()):
        raise UnsupportedModelError(
            f"{model.path.name}: tensor {stored} holds values that are not finite"
        )
    return data


def stored_rows(config: PretrainedConfig, name: str, count: int) -> NDArray[np.int64] | None:
    """Return which stored row each of the `count` rows of a parameter is; None: the same.

    llama.cpp rotates pairs of neighbours in a head of a Llama, `transformers` its two halves.
    """
    if not rotates_neighbours(config.model_type, name):
        return None
    heads = np.arange(count).reshape(-1, config.head_dim // 2, 2)
    return heads.swapaxes(1, 2).reshape(count)


def stored_shift(config: PretrainedConfig, name: str) -> float:
    """Return what the file adds to a parameter: llama.cpp adds Gemma's 1 to its norms."""
    return float(config.model_type.startswith("gemma") and name.endswith("norm.weight"))


def _parameters(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters that the family's own code would load."""
    # Imported here: looking through all families takes a third of a second.
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config, trust_remote_code=False).state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
