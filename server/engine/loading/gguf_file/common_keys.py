"""What the metadata of all architectures says in the same way."""

from typing import Any

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file import rope
from server.engine.loading.gguf_file.keys import Keys
from server.engine.loading.gguf_file.parts import GgufModel

# Keys that say how the file was made, or that only other kinds of norm use.
_HARMLESS = frozenset(
    {"rope.scaling.finetuned", "tensor_data_layout", "attention.layer_norm_epsilon"}
)
_SPECIAL = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def common_fields(keys: Keys, model: GgufModel) -> dict[str, Any]:
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
    }
    for name, key in _SPECIAL.items():
        fields[name] = token_id(model, f"tokenizer.ggml.{key}_token_id", vocab)
    return fields


def bias_fields(model: GgufModel) -> dict[str, bool]:
    """Return whether the projections of attention and of the feed-forward block have biases."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in model.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in model.tensors,
    }


def token_id(model: GgufModel, key: str, vocab: int) -> int | None:
    """Return the token that a key names, or None. Raises `UnsupportedModelError`."""
    value = model.metadata.get(key)
    if value is None or (isinstance(value, int) and 0 <= value < vocab):
        return value
    raise UnsupportedModelError(f"GGUF key {key} = {value!r} lies outside the {vocab} tokens")


def rope_fields(keys: Keys, model: GgufModel, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the rope parameters: the base with either a scaling or factors per frequency."""
    base = keys.number("rope.freq_base", 10000.0)
    parameters = rope.scaling(keys, fields["max_position_embeddings"])
    if rope.FACTORS in model.tensors:
        pairs = fields["head_dim"] // 2
        by_factors = rope.from_factors(rope.factors(model, rope.FACTORS, pairs), base)
        if "default" not in (parameters["rope_type"], by_factors["rope_type"]):
            raise UnsupportedModelError(
                f"GGUF tensor {rope.FACTORS} together with rope.scaling.type is not supported"
            )
        parameters = by_factors if parameters["rope_type"] == "default" else parameters
    return {**parameters, "rope_theta": base}


def refuse_windows(keys: Keys) -> None:
    """Refuse sliding attention."""
    keys.neutral("attention.sliding_window", 0)
    keys.neutral("attention.sliding_window_pattern", 0)


def finish(keys: Keys, fields: dict[str, Any]) -> None:
    """Refuse another scale of attention than the usual, `head_dim ** -0.5`, and unknown keys."""
    keys.neutral("attention.scale", 0.0, close=fields["head_dim"] ** -0.5)
    keys.finish(_HARMLESS)


def slides(keys: Keys, layers: int, default: int) -> list[bool]:
    """Return which layers have sliding attention: a list, or all but every n-th."""
    key = "attention.sliding_window_pattern"
    pattern = keys.take(key, default)
    if isinstance(pattern, list) and len(pattern) == layers:
        return [bool(slides) for slides in pattern]
    if isinstance(pattern, int) and not isinstance(pattern, bool) and pattern > 0:
        return [index % pattern < pattern - 1 for index in range(layers)]
    raise keys.refuse(key, pattern, "is not supported")
