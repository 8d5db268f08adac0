"""The architectures of GGUF files as configurations of `transformers`, one function each.

What the keys mean is taken from llama.cpp: its converter writes them, its `src/models` reads them.
"""

from collections.abc import Callable
from typing import Any

from transformers import (
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from server.engine.loading.gguf_file import rope
from server.engine.loading.gguf_file.common_keys import (
    bias_fields,
    common_fields,
    finish,
    refuse_windows,
    rope_fields,
    slides,
)
from server.engine.loading.gguf_file.keys import Keys
from server.engine.loading.gguf_file.parts import GgufModel

_GEMMA_27B_LAYERS = 62  # how llama.cpp tells the one size whose attention is scaled differently
_SMOLLM3_STEP = 4  # every 4th layer has no rotary embedding


def _layer_types(sliding: list[bool]) -> list[str]:
    return ["sliding_attention" if one else "full_attention" for one in sliding]


def _llama(keys: Keys, model: GgufModel) -> PretrainedConfig:
    """Build the configuration of Llama, or of Mistral and Ministral with sliding attention."""
    keys.neutral("attention.temperature_scale", 0.0)
    fields = common_fields(keys, model)
    fields["rope_parameters"] = rope_fields(keys, model, fields)
    window = keys.take("attention.sliding_window", 0)
    if window == 0:
        refuse_windows(keys)
        finish(keys, fields)
        return LlamaConfig(**fields, **bias_fields(model), architectures=["LlamaForCausalLM"])
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise keys.refuse("attention.sliding_window", window, "is not a number of tokens")
    sliding = (
        slides(keys, fields["num_hidden_layers"], 0)
        if keys.has("attention.sliding_window_pattern")
        else None
    )
    finish(keys, fields)
    if sliding is None:
        return MistralConfig(**fields, sliding_window=window, architectures=["MistralForCausalLM"])
    return MinistralConfig(
        **fields,
        sliding_window=window,
        layer_types=_layer_types(sliding),
        architectures=["MinistralForCausalLM"],
    )


def _unwindowed_fields(keys: Keys, model: GgufModel) -> dict[str, Any]:
    """Return the fields of a model with full attention; all keys must be known then."""
    fields = common_fields(keys, model)
    fields["rope_parameters"] = rope_fields(keys, model, fields)
    refuse_windows(keys)
    finish(keys, fields)
    return fields


def _qwen2(keys: Keys, model: GgufModel) -> PretrainedConfig:
    fields = _unwindowed_fields(keys, model)
    return Qwen2Config(**fields, use_sliding_window=False, architectures=["Qwen2ForCausalLM"])


def _qwen3(keys: Keys, model: GgufModel) -> PretrainedConfig:
    fields = _unwindowed_fields(keys, model)
    return Qwen3Config(
        **fields,
        attention_bias=False,
        use_sliding_window=False,
        architectures=["Qwen3ForCausalLM"],
    )


def _gemma3(keys: Keys, model: GgufModel) -> PretrainedConfig:
    """Build the configuration of Gemma 3, most layers of which have sliding attention.

    Those have another base of rotary embeddings.
    """
    fields = common_fields(keys, model)
    head_dim, layers = fields["head_dim"], fields["num_hidden_layers"]
    for key in ("attention.key_length_swa", "attention.value_length_swa"):
        keys.neutral(key, head_dim)
    keys.neutral("rope.dimension_count_swa", head_dim)
    local = keys.number("rope.freq_base_swa", 10000.0)
    sliding = slides(keys, layers, 6)
    full = rope_fields(keys, model, fields)
    window = keys.count("attention.sliding_window")
    scalar = fields["hidden_size"] // fields["num_attention_heads"]
    scalar = scalar if layers == _GEMMA_27B_LAYERS else head_dim
    keys.neutral("attention.scale", 0.0, close=scalar**-0.5)
    finish(keys, fields)
    return Gemma3TextConfig(
        **fields,
        attention_bias=False,
        sliding_window=window,
        layer_types=_layer_types(sliding),
        rope_parameters={
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
        query_pre_attn_scalar=scalar,
        architectures=["Gemma3ForCausalLM"],
    )


def _phi3(keys: Keys, model: GgufModel) -> PretrainedConfig:
    """Build the configuration of Phi-3 or Phi-4.

    A part of each head is rotated. llama.cpp has no sliding attention here, the family has.
    """
    rotated = keys.take("rope.dimension_count")
    window = keys.take("attention.sliding_window", 0)
    fields = common_fields(keys, model)
    head_dim = fields.pop("head_dim")
    if head_dim * fields["num_attention_heads"] != fields["hidden_size"]:
        raise keys.refuse("attention.key_length", head_dim, "is not supported")
    rotated = head_dim if rotated is None else rotated
    if not isinstance(rotated, int) or not 0 < rotated <= head_dim or rotated % 2:
        raise keys.refuse("rope.dimension_count", rotated, "is not supported")
    context = fields["max_position_embeddings"]
    original = keys.count("rope.scaling.original_context_length", context)
    parameters = rope.by_length(keys, model, rotated, original)
    parameters["rope_theta"] = keys.number("rope.freq_base", 10000.0)
    parameters["partial_rotary_factor"] = rotated / head_dim
    keys.neutral("attention.sliding_window_pattern", 0)
    finish(keys, {"head_dim": head_dim})
    return Phi3Config(
        **fields,
        rope_parameters=parameters,
        original_max_position_embeddings=original,
        sliding_window=window or None,
        architectures=["Phi3ForCausalLM"],
    )


def _granite(keys: Keys, model: GgufModel) -> PretrainedConfig:
    """Build the configuration of Granite; a scale of 0 means that there is none."""
    scales = {
        "logits_scaling": keys.number("logit_scale"),
        "residual_multiplier": keys.scale("residual_scale", 1.0),
        "embedding_multiplier": keys.scale("embedding_scale", 1.0),
    }
    keys.neutral("rope.scaling.finetuned", True)  # here it says whether there is any rotation
    fields = common_fields(keys, model)
    fields["rope_parameters"] = rope_fields(keys, model, fields)
    scales["attention_multiplier"] = keys.scale("attention.scale", fields["head_dim"] ** -0.5)
    refuse_windows(keys)
    finish(keys, fields)
    return GraniteConfig(
        **fields, **scales, **bias_fields(model), architectures=["GraniteForCausalLM"]
    )


def _olmo2(keys: Keys, model: GgufModel) -> PretrainedConfig:
    fields = _unwindowed_fields(keys, model)  # OLMo 3 has windows
    return Olmo2Config(**fields, attention_bias=False, architectures=["Olmo2ForCausalLM"])


def _smollm3(keys: Keys, model: GgufModel) -> PretrainedConfig:
    fields = _unwindowed_fields(keys, model)
    return SmolLM3Config(
        **fields,
        attention_bias=False,
        mlp_bias=False,
        no_rope_layer_interval=_SMOLLM3_STEP,
        use_sliding_window=False,
        architectures=["SmolLM3ForCausalLM"],
    )


ARCHITECTURES: dict[str, Callable[[Keys, GgufModel], PretrainedConfig]] = {
    "llama": _llama,
    "mistral3": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "granite": _granite,
    "olmo2": _olmo2,
    "smollm3": _smollm3,
}
"""By `general.architecture`."""
