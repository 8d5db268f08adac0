"""The tensors of a GGUF file, with the names and the layout that `transformers` has for them."""

import re

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PretrainedConfig

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.config import ROPE_FACTORS
from server.engine.loading.gguf_file.parts import GgufModel
from server.engine.loading.model_files import listing

Floats = NDArray[np.float32]
_OUTSIDE = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_IN_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_IN_GEMMA_LAYER = {
    **_IN_LAYER,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_ROTATED = ("q_proj.weight", "k_proj.weight")
FLOATS = ("F32", "F16", "BF16", "F64")
"""The types of tensors that are not quantised."""


def tensor_names(model: GgufModel, config: PretrainedConfig) -> dict[str, str]:
    """Return the GGUF name of each parameter of the model, after checking that all of them fit.

    Raises `UnsupportedModelError` with the name of a tensor that is missing, left over, of another
    shape or of a type that cannot be read.
    """
    gemma = config.model_type.startswith("gemma")
    names, shapes = {}, {}
    for name, shape in _parameters(config).items():
        names[name] = _gguf_name(name, _IN_GEMMA_LAYER if gemma else _IN_LAYER)
        shapes[names[name]] = shape
    where = model.path.name
    missing = shapes.keys() - model.tensors.keys()
    if missing:
        raise UnsupportedModelError(f"{where}: tensors missing: {listing(missing)}")
    extra = model.tensors.keys() - shapes.keys()
    if config.model_type == "llama":
        extra -= {ROPE_FACTORS}
    if extra:
        why = f"not part of a '{config.model_type}' of {config.num_hidden_layers} layers"
        raise UnsupportedModelError(f"{where}: tensors {why}: {listing(extra)}")
    for name, shape in shapes.items():
        tensor = model.tensors[name]
        stored = tuple(int(size) for size in reversed(tensor.shape.tolist()))
        if stored != shape:
            raise UnsupportedModelError(f"{where}: tensor {name} is {stored}, not {shape}")
        if tensor.tensor_type.name not in FLOATS and not _can_read(tensor.tensor_type):
            kind = tensor.tensor_type.name
            raise UnsupportedModelError(f"{where}: tensor {name} of type {kind} cannot be read")
    return names


def stored_values(model: GgufModel, stored: str, rows: NDArray[np.int64] | slice) -> Floats:
    """Return rows of a tensor, or numbers of a vector, dequantised exactly to fp32.

    Raises `UnsupportedModelError` for values that are not finite.
    """
    tensor = model.tensors[stored]
    data = gguf.dequantize(tensor.data[rows], tensor.tensor_type).astype(np.float32)
    if not np.isfinite(data).all():
        raise UnsupportedModelError(
            f"{model.path.name}: tensor {stored} holds values that are not finite"
        )
    return data


def stored_rows(config: PretrainedConfig, name: str, count: int) -> NDArray[np.int64] | None:
    """Return which stored row each of the `count` rows of a parameter is; None: the same.

    llama.cpp rotates pairs of neighbours in a head of a Llama, `transformers` its two halves.
    """
    if config.model_type != "llama" or not name.endswith(_ROTATED):
        return None
    heads = np.arange(count).reshape(-1, config.head_dim // 2, 2)
    return heads.swapaxes(1, 2).reshape(count)


def stored_shift(config: PretrainedConfig, name: str) -> float:
    """Return what the file adds to a parameter: llama.cpp adds Gemma's 1 to its norms."""
    return float(config.model_type.startswith("gemma") and name.endswith("norm.weight"))


def _parameters(config: PretrainedConfig) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters that the family's own code would load."""
    with torch.device("meta"):
        state = AutoModelForCausalLM.from_config(config, trust_remote_code=False).state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _gguf_name(name: str, in_layer: dict[str, str]) -> str:
    module, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(module)
    if layer is None:
        return f"{_OUTSIDE[module]}.{kind}"
    return f"blk.{layer[1]}.{in_layer[layer[2]]}.{kind}"


def _can_read(kind: gguf.GGMLQuantizationType) -> bool:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return block > 1
