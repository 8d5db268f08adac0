"""The configuration that a GGUF file's metadata describes, one function an architecture.

Every key is applied, or without effect at its value, or the file is refused with the key's name.
"""

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file import rope
from server.engine.loading.gguf_file.keys import Keys
from server.engine.loading.gguf_file.parts import GgufModel

ROPE_FACTORS = "rope_freqs.weight"
# Keys that say how the file was made, or that only other kinds of norm use.
_HARMLESS = frozenset(
    {"rope.scaling.finetuned", "tensor_data_layout", "attention.layer_norm_epsilon"}
)
_SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
_GEMMA_27B_LAYERS = 62  # how llama.cpp tells the one size whose attention is scaled differently


def config_of(model: GgufModel) -> PretrainedConfig:
    """Return the `transformers` configuration. Raises `UnsupportedModelError`."""
    architecture = model.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModelError(
            f"{model.path.name}: GGUF architecture {architecture!r} is not supported; "
            f"supported: {', '.join(_ARCHITECTURES)}"
        )
    kind = model.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(f"{model.path.name} holds no model: general.type = {kind!r}")
    keys = Keys(model.metadata, architecture)
    try:
        config = _ARCHITECTURES[architecture](keys, model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{model.path.name}: {error}") from error
    return config


def _common(keys: Keys, model: GgufModel) -> dict[str, Any]:
    """Return the fields of all architectures; refuse keys of others unless without effect."""
    embedding = model.tensors.get("token_embd.weight")
    if embedding is None:
        raise UnsupportedModelError("GGUF tensor token_embd.weight is missing")
    vocab = int(embedding.shape[1])
    hidden, heads = keys.count("embedding_length"), keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        keys.neutral(key, head_dim)
    keys.neutral("vocab_size", vocab)
    for key in ("expert_count", "expert_used_count", "pooling_type", "attention.clamp_kqv"):
        keys.neutral(key, 0)
    for key in ("attention.max_alibi_bias", "clamp_kqv"):
        keys.neutral(key, 0.0)
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        keys.neutral(key, 0.0)
    for key in ("logit_scale", "residual_scale", "embedding_scale"):
        keys.neutral(key, 0.0, 1.0)
    keys.neutral("attention.causal", True)
    keys.neutral("use_parallel_residual", False)
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "num_hidden_layers": keys.count("block_count"),
        "intermediate_size": keys.count("feed_forward_length"),
        "max_position_embeddings": keys.count("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "vocab_size": vocab,
        # llama.cpp reads the embedding in place of a head that is not there.
        "tie_word_embeddings": "output.weight" not in model.tensors,
        "attention_bias": False,
    }
    for name, key in _SPECIAL.items():
        fields[name] = _token_id(model, f"tokenizer.ggml.{key}_token_id", vocab)
    return fields


def end_token_ids(model: GgufModel) -> list[int]:
    """Return the tokens that end an answer: of text, of a turn and of a message."""
    vocab = int(model.tensors["token_embd.weight"].shape[1])
    ids = (
        _token_id(model, f"tokenizer.ggml.{key}_token_id", vocab) for key in ("eos", "eot", "eom")
    )
    return list(dict.fromkeys(end for end in ids if end is not None))


def _token_id(model: GgufModel, key: str, vocab: int) -> int | None:
    value = model.metadata.get(key)
    if value is None or (isinstance(value, int) and 0 <= value < vocab):
        return value
    raise UnsupportedModelError(f"GGUF key {key} = {value!r} lies outside the {vocab} tokens")


def _rope(keys: Keys, model: GgufModel, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the rope parameters: the base with either a scaling or factors per frequency."""
    base = keys.number("rope.freq_base", 10000.0)
    parameters = rope.scaling(keys, fields["max_position_embeddings"])
    factors = model.tensors.get(ROPE_FACTORS)
    if factors is not None:
        if tuple(factors.shape) != (fields["head_dim"] // 2,) or factors.data.dtype != "float32":
            raise UnsupportedModelError(
                f"GGUF tensor {ROPE_FACTORS} is not one fp32 factor for each pair of a head"
            )
        by_factors = rope.from_factors(factors.data, base)
        if "default" not in (parameters["rope_type"], by_factors["rope_type"]):
            raise UnsupportedModelError(
                f"GGUF tensor {ROPE_FACTORS} together with rope.scaling.type is not supported"
            )
        parameters = by_factors if parameters["rope_type"] == "default" else parameters
    return {**parameters, "rope_theta": base}


def _attention_as_usual(keys: Keys, fields: dict[str, Any]) -> None:
    """Refuse any attention but full attention with the usual scale, `head_dim ** -0.5`."""
    keys.neutral("attention.sliding_window", 0)
    keys.neutral("attention.sliding_window_pattern", 0)
    keys.neutral("attention.scale", 0.0, close=fields["head_dim"] ** -0.5)
    keys.finish(_HARMLESS)


def _llama(keys: Keys, model: GgufModel) -> PretrainedConfig:
    """Build the configuration of Llama, or of Mistral without sliding attention."""
    fields = _common(keys, model)
    fields["rope_parameters"] = _rope(keys, model, fields)
    _attention_as_usual(keys, fields)
    return LlamaConfig(**fields, mlp_bias=False, architectures=["LlamaForCausalLM"])


def _qwen2(keys: Keys, model: GgufModel) -> PretrainedConfig:
    fields = _common(keys, model)
    fields["rope_parameters"] = _rope(keys, model, fields)
    _attention_as_usual(keys, fields)
    del fields["attention_bias"]  # the family has it on q, k and v, always
    return Qwen2Config(**fields, use_sliding_window=False, architectures=["Qwen2ForCausalLM"])


def _qwen3(keys: Keys, model: GgufModel) -> PretrainedConfig:
    fields = _common(keys, model)
    fields["rope_parameters"] = _rope(keys, model, fields)
    _attention_as_usual(keys, fields)
    return Qwen3Config(**fields, use_sliding_window=False, architectures=["Qwen3ForCausalLM"])


def _gemma3(keys: Keys, model: GgufModel) -> PretrainedConfig:
    """Build the configuration of Gemma 3, most layers of which have sliding attention.

    Those have another base of rotary embeddings.
    """
    fields = _common(keys, model)
    head_dim, layers = fields["head_dim"], fields["num_hidden_layers"]
    for key in ("attention.key_length_swa", "attention.value_length_swa"):
        keys.neutral(key, head_dim)
    keys.neutral("rope.dimension_count_swa", head_dim)
    local = keys.number("rope.freq_base_swa", 10000.0)
    slides = _slides(keys, layers)
    full = _rope(keys, model, fields)
    window = keys.count("attention.sliding_window")
    scalar = fields["hidden_size"] // fields["num_attention_heads"]
    scalar = scalar if layers == _GEMMA_27B_LAYERS else head_dim
    keys.neutral("attention.scale", 0.0, close=scalar**-0.5)
    keys.finish(_HARMLESS)
    return Gemma3TextConfig(
        **fields,
        sliding_window=window,
        layer_types=["sliding_attention" if s else "full_attention" for s in slides],
        rope_parameters={
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        query_pre_attn_scalar=scalar,
        architectures=["Gemma3ForCausalLM"],
    )


def _slides(keys: Keys, layers: int) -> list[bool]:
    """Return which layers have sliding attention: a list, or all but every n-th (default 6)."""
    key = "attention.sliding_window_pattern"
    pattern = keys.take(key, 6)
    if isinstance(pattern, list) and len(pattern) == layers:
        return [bool(slides) for slides in pattern]
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return [index % pattern < pattern - 1 for index in range(layers)]
    raise keys.refuse(key, pattern, "is not supported")


_ARCHITECTURES: dict[str, Callable[[Keys, GgufModel], PretrainedConfig]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
}
