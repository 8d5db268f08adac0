"""Configurations of tiny models of every served family, for tests of pruning and of serving."""

from typing import Any, TypeAlias

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

FamilyConfig: TypeAlias = tuple[type[PreTrainedModel], type[PreTrainedConfig], dict[str, Any]]
"""The model's class, its configuration's class, and the fields that differ from `BASE_SIZES`."""

BASE_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


def served_families(llama: str, window: int) -> dict[str, FamilyConfig]:
    """Return each family by name, Llama with grouped queries as `llama`.

    Sliding attention covers `window` tokens, in families that have it.
    """
    return {
        llama: (LlamaForCausalLM, LlamaConfig, {}),
        "llama-mha": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 4}),
        "llama-bias": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
        "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": window}),
        "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
        "qwen3": (Qwen3ForCausalLM, Qwen3Config, {}),
        "gemma3": (
            Gemma3ForCausalLM,
            Gemma3TextConfig,
            {"sliding_window": window, "layer_types": _MIXED},
        ),
        "ministral": (
            MinistralForCausalLM,
            MinistralConfig,
            {"sliding_window": window, "layer_types": _MIXED},
        ),
        "phi3": (
            Phi3ForCausalLM,
            Phi3Config,
            {"sliding_window": window, "partial_rotary_factor": 0.75},
        ),
        "granite": (
            GraniteForCausalLM,
            GraniteConfig,
            {
                "embedding_multiplier": 3.0,
                "attention_multiplier": 0.2,
                "residual_multiplier": 0.4,
                "logits_scaling": 0.7,
            },
        ),
        "olmo2": (Olmo2ForCausalLM, Olmo2Config, {}),
        "smollm3": (
            SmolLM3ForCausalLM,
            SmolLM3Config,
            {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window": window},
        ),
    }
