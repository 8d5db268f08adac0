"""Configurations of tiny models of every served family, for tests of pruning and of serving."""

from typing import Any, TypeAlias

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
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
            {
                "sliding_window": window,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            },
        ),
    }
