"""Fields of model configurations and other values for them: those that a family has, and strays."""

from copy import deepcopy
from dataclasses import dataclass, field, fields
from typing import Any

from transformers import PreTrainedConfig

LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "attention_factor": 1.4,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 2.0,
    "short_factor": [1.0] * 4,
    "long_factor": [2.0] * 4,
    "original_max_position_embeddings": 16,
}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]


@dataclass(frozen=True)
class Case:
    """A field set to `value`, and the other fields that this needs.

    `refused` is what the refusal has to name; without it, logits must equal those of
    `transformers`.
    """

    field: str
    value: Any
    refused: str | None = None
    with_: dict[str, Any] = field(default_factory=dict)

    @property
    def changes(self) -> dict[str, Any]:
        # A copy, since configurations change what they are given.
        return deepcopy({**self.with_, self.field: self.value})


def _all(name: str, *values: object) -> list[Case]:
    return [Case(name, value) for value in values]


_EVERY = [
    *_all("architectures", ["OtherForCausalLM"]),
    *_all("attention_dropout", 0.5),
    *_all("bos_token_id", None, 3),
    *_all("chunk_size_feed_forward", 8),
    *_all("dtype", "float16"),
    *_all("eos_token_id", None, 0, [0, 3]),
    *_all("head_dim", 16),
    Case("head_dim", 7, "head_dim"),
    *_all("hidden_size", 48),
    *_all("id2label", {0: "a", 1: "b", 2: "c"}),
    *_all("initializer_range", 0.5),
    *_all("intermediate_size", 40),
    *_all("is_encoder_decoder", True),
    *_all("label2id", {"a": 0}),
    *_all("max_position_embeddings", 64),
    *_all("num_attention_heads", 8),
    Case("num_hidden_layers", 2, with_={"layer_types": None}),
    Case("num_hidden_layers", 0, "num_hidden_layers", {"layer_types": None}),
    *_all("num_key_value_heads", 1, 4),
    Case("num_key_value_heads", 3, "num_key_value_heads"),
    *_all("output_hidden_states", True),
    *_all("pad_token_id", None, 0, 5, -1),
    Case("pad_token_id", 96, "pad_token_id"),
    *_all("problem_type", "regression"),
    *_all("return_dict", False),
    *_all("rms_norm_eps", 0.3),
    *_all("tie_word_embeddings", True, False),
    *_all("transformers_version", "4.0.0"),
    *_all("use_cache", False),
    *_all("vocab_size", 80),
]
_ONE_ROPE = [
    *_all("rope_parameters", {"rope_type": "default", "rope_theta": 300.0}, LINEAR, YARN, LLAMA3),
    Case("rope_parameters", DYNAMIC, "rope_parameters"),
    Case("rope_parameters", LONG, "rope_parameters"),
    Case("rope_parameters", {"rope_type": "nonsense", "rope_theta": 1e4}, "nonsense"),
    Case("rope_parameters", {**LINEAR, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
]
_ACT = [*_all("hidden_act", "gelu", "gelu_pytorch_tanh"), Case("hidden_act", "relu", "hidden_act")]
_WINDOWED = [
    Case("use_sliding_window", True, with_={"sliding_window": 9, "max_window_layers": 1}),
    Case("sliding_window", 9),
    Case("sliding_window", 9, with_={"use_sliding_window": True, "max_window_layers": 0}),
    Case("max_window_layers", 1),
    Case("layer_types", MIXED, with_={"use_sliding_window": True, "sliding_window": 9}),
    Case("layer_types", MIXED, "sliding_window"),
    Case("layer_types", MIXED[:2], "layer_types"),
    Case("layer_types", ["chunked_attention"] * 3, "layer_types"),
]
_GEMMA_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    "full_attention": LINEAR,
}
_SHORT_AND_LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.2, 1.5],
    "long_factor": [2.0] * 3,
}
OWN = {
    "llama": [
        *_EVERY,
        *_ACT,
        *_ONE_ROPE,
        *_all("attention_bias", True),
        *_all("mlp_bias", True),
        *_all("pretraining_tp", 2),
        *_all("head_dim", None),
        *_all("num_key_value_heads", None),
    ],
    "mistral": [
        *_EVERY,
        *_ACT,
        *_ONE_ROPE,
        *_all("head_dim", None),
        *_all("sliding_window", None, 9, 1, 1000),
        Case("sliding_window", 0, "sliding_window"),
    ],
    "qwen2": [*_EVERY, *_ACT, *_ONE_ROPE, *_WINDOWED, *_all("num_key_value_heads", None)],
    "qwen3": [*_EVERY, *_ACT, *_ONE_ROPE, *_WINDOWED, *_all("attention_bias", True)],
    "gemma3": [
        *_EVERY,
        *_all("hidden_activation", "gelu", "silu"),
        Case("hidden_activation", "relu", "hidden_activation"),
        *_all("rope_parameters", None, _GEMMA_ROPE),
        Case("rope_parameters", {"full_attention": DYNAMIC}, "rope_parameters"),
        *_all("attention_bias", True),
        *_all("query_pre_attn_scalar", 3),
        *_all("sliding_window", 9, 1000),
        Case("sliding_window", None, "sliding_window"),
        *_all("layer_types", ["full_attention"] * 3, MIXED[::-1]),
        Case("layer_types", None, with_={"sliding_window_pattern": 2}),
        Case("layer_types", MIXED[:2], "layer_types"),
        Case("layer_types", ["chunked_attention"] * 3, "chunked_attention"),
        *_all("attn_logit_softcapping", None),
        Case("attn_logit_softcapping", 2.0, "attn_logit_softcapping"),
        *_all("final_logit_softcapping", None),
        Case("final_logit_softcapping", 2.0, "final_logit_softcapping"),
        Case("use_bidirectional_attention", True, "use_bidirectional_attention"),
    ],
    "ministral": [
        *_EVERY,
        *_ACT,
        *_ONE_ROPE,
        *_all("sliding_window", 9, 1000),
        Case("sliding_window", None, "sliding_window"),
        Case("sliding_window", 0, "sliding_window"),
        *_all("layer_types", ["full_attention"] * 3, MIXED[::-1], None),
        Case("layer_types", ["chunked_attention"] * 3, "layer_types"),
    ],
    "phi3": [
        *_EVERY,
        *_ACT,
        *_all("rope_parameters", {"rope_type": "default", "rope_theta": 300.0}),
        Case("rope_parameters", _SHORT_AND_LONG),
        Case("rope_parameters", {**_SHORT_AND_LONG, "attention_factor": 1.3}),
        Case("rope_parameters", {**_SHORT_AND_LONG, "short_factor": [1.0] * 4}, "short_factor"),
        Case("rope_parameters", LINEAR, "rope_parameters"),
        Case("rope_parameters", YARN, "short_factor"),
        Case("original_max_position_embeddings", 64, with_={"rope_parameters": _SHORT_AND_LONG}),
        *_all("original_max_position_embeddings", 64),
        *_all("sliding_window", None, 9, 1, 1000),
        Case("sliding_window", 0, "sliding_window"),
        *_all("resid_pdrop", 0.5),
        *_all("embd_pdrop", 0.5),
        *_all("num_key_value_heads", None),
    ],
    "granite": [
        *_EVERY,
        *_ACT,
        *_ONE_ROPE,
        *_all("attention_bias", True),
        *_all("mlp_bias", True),
        *_all("attention_multiplier", 0.05, 1),
        *_all("embedding_multiplier", 1.0, 12),
        *_all("logits_scaling", 1.0, 8),
        *_all("residual_multiplier", 1.0, 0.22),
        *_all("num_key_value_heads", None),
    ],
    "olmo2": [
        *_EVERY,
        *_ACT,
        *_ONE_ROPE,
        *_all("attention_bias", True),
        *_all("num_key_value_heads", None),
    ],
    "smollm3": [
        *_EVERY,
        *_ACT,
        *_ONE_ROPE,
        *_all("attention_bias", True),
        *_all("mlp_bias", True),
        *_all("no_rope_layers", [0, 1, 1], [0, 0, 0], [1, 1, 1, 1]),
        *_all("no_rope_layer_interval", 1, 3),
        *_all("use_sliding_window", False),
        *_all("sliding_window", 9, None),
        Case("layer_types", MIXED),
        Case("layer_types", MIXED, with_={"use_sliding_window": False}),
        Case("layer_types", MIXED, "sliding_window", {"sliding_window": None}),
        Case("layer_types", ["chunked_attention"] * 3, "layer_types"),
    ],
}
"""By family; together they name every field of its configuration's class."""

_OLD_ROPE = [
    *_all("rope_theta", 300.0),
    Case("rope_scaling", {"type": "linear", "factor": 2.0}, with_={"rope_theta": 1e4}),
    Case("rope_scaling", {"type": "dynamic", "factor": 2.0}, "rope_parameters"),
    Case("original_max_position_embeddings", 32, with_={"rope_parameters": LLAMA3}),
]
STRAYS = [
    *_all("add_cross_attention", True),
    *_all("alibi", True),
    *_all("attention_bias", True),
    *_all("attention_chunk_size", 8),
    *_all("attention_multiplier", 3.0),
    *_all("attn_logit_softcapping", 2.0),
    *_all("attn_scale", 3.0),
    *_all("clip_qkv", 0.1),
    *_all("embedding_multiplier", 3.0),
    *_all("final_logit_softcapping", 2.0),
    *_all("head_dim", 16),
    *_all("hidden_act", "relu"),
    *_all("hidden_activation", "relu"),
    *_all("hidden_dropout", 0.5),
    Case("is_causal", False, "is_causal"),
    *_all("is_causal", True),
    *_all("is_decoder", False),
    *_all("layer_norm_eps", 0.3),
    *_all("layer_types", MIXED),
    *_all("logit_scale", 3.0),
    *_all("logits_scaling", 3.0),
    *_all("max_window_layers", 0),
    *_all("mlp_bias", True),
    *_all("moe_intermediate_size", 16),
    *_all("no_rope_layers", [0, 1, 0]),
    *_all("norm_eps", 0.3),
    *_all("num_experts", 4),
    *_all("num_experts_per_tok", 2),
    *_all("num_kv_shared_layers", 2),
    *_all("num_local_experts", 4),
    *_all("partial_rotary_factor", 0.5),
    Case("per_layer_config", {1: {"intermediate_size": 40}}, "per_layer_config"),
    *_all("pruned_heads", {0: [1]}),
    *_all("qkv_bias", False),
    *_all("query_pre_attn_scalar", 3),
    *_all("residual_multiplier", 0.3),
    *_all("rope_interleaved", True),
    *_all("rope_local_base_freq", 50.0),
    *_all("rotary_dim", 4),
    *_all("rotary_pct", 0.5),
    *_all("scale_attn_weights", False),
    *_all("scale_embedding", True),
    *_all("sliding_window", 9),
    *_all("sliding_window_pattern", 1),
    *_all("torch_dtype", "float16"),
    *_all("use_bidirectional_attention", True),
    *_all("use_qk_norm", True),
    *_all("use_sliding_window", True),
]
"""What other families have, set in the configuration of one that does not have it."""


_WITH_STRAYS = ("llama", "mistral", "qwen2", "qwen3", "gemma3", "phi3", "olmo2")
"""The others read their configurations by the same functions."""


def cases_of(family: str, config: type[PreTrainedConfig]) -> list[Case]:
    """Every case of a family: its own fields, older names of them, and strays."""
    own = {one.name for one in fields(config)}
    old = _OLD_ROPE if family not in ("gemma3", "phi3") else [*_all("rope_theta", 300.0)]
    strays = STRAYS if family in _WITH_STRAYS else ()
    return [*OWN[family], *old, *(case for case in strays if case.field not in own)]
