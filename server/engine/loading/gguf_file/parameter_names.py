"""How llama.cpp names and orders the parameters of each family."""

import re

from server.engine.loading.gguf_file import rope

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
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",  # the gate's rows come first
    "mlp.down_proj": "ffn_down",
}
_NORMS_BEHIND = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_LLAMAS = frozenset({"llama", "mistral", "ministral", "granite", "smollm3"})


def gguf_name(family: str, name: str) -> str:
    """Return the name in a GGUF file of a parameter that `transformers` calls `name`."""
    module, _, kind = name.rpartition(".")
    layer = _LAYER.fullmatch(module)
    if layer is None:
        return f"{_OUTSIDE[module]}.{kind}"
    behind = family in ("gemma3_text", "olmo2")
    in_layer = {**_IN_LAYER, **_NORMS_BEHIND} if behind else _IN_LAYER
    return f"blk.{layer[1]}.{in_layer[layer[2]]}.{kind}"


def rope_tensors(family: str) -> frozenset[str]:
    """Return the tensors that are part of a family's configuration, not parameters."""
    if family == "phi3":
        return frozenset({rope.SHORT, rope.LONG})
    return frozenset({rope.FACTORS} if family in _LLAMAS - {"smollm3"} else ())


def rotates_neighbours(family: str, name: str) -> bool:
    """Return whether the rows of a parameter are in another order than in `transformers`.

    llama.cpp rotates pairs of neighbours in a head of these families, `transformers` its two
    halves.
    """
    rotated = ("q_proj.weight", "k_proj.weight", "q_proj.bias", "k_proj.bias")
    return family in _LLAMAS and name.endswith(rotated)
