"""Phi-3 and Phi-4: fused projections; rotary embedding of a part of each head; longrope."""

from copy import copy
from dataclasses import replace

from pruners.architecture.base import Attention, HfModule, LocatedLayer, LocatedModel, Mlp
from pruners.architecture.llama import model_of, windows_everywhere
from pruners.architecture.weight_view import LinearView

FAMILIES = ("phi3",)


def _set_heads(module: HfModule, heads: int) -> None:
    module.num_key_value_heads = heads // module.num_key_value_groups
    # By its configuration the module finds where in the fused projection the keys begin.
    module.config = copy(module.config)
    module.config.num_attention_heads = heads


def _layer(module: HfModule, window: int | None) -> LocatedLayer:
    attention, mlp = module.self_attn, module.mlp
    keys = attention.num_key_value_heads * attention.head_dim
    queries, end = attention.qkv_proj.out_features - 2 * keys, attention.qkv_proj.out_features
    neurons = mlp.gate_up_proj.out_features // 2
    return LocatedLayer(
        module=module,
        attention=Attention(
            q=LinearView(attention.qkv_proj, 0, queries),
            k=LinearView(attention.qkv_proj, queries, queries + keys),
            v=LinearView(attention.qkv_proj, queries + keys, end),
            o=attention.o_proj,
            module=attention,
            scale=attention.scaling,
            set_heads=_set_heads,
        ),
        mlp=Mlp(
            gate=LinearView(mlp.gate_up_proj, 0, neurons),
            up=LinearView(mlp.gate_up_proj, neurons, 2 * neurons),
            down=mlp.down_proj,
        ),
        attention_norm=module.input_layernorm,
        mlp_norm=module.post_attention_layernorm,
        window=window,
    )


def _max_context(config: HfModule) -> int | None:
    """Return the longest text for which longrope's tables stay the same; None if it is no limit."""
    rope = config.rope_parameters
    if rope["rope_type"] != "longrope" or rope["short_factor"] == rope["long_factor"]:
        return None
    limit: int = rope["original_max_position_embeddings"]
    return limit


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `Phi3ForCausalLM`."""
    config, body = model.config, model.model
    layers = [
        _layer(layer, window)
        for layer, window in zip(body.layers, windows_everywhere(config), strict=True)
    ]
    located = model_of(model, layers, [])
    assert located.serving is not None
    share = config.rope_parameters["partial_rotary_factor"]
    return replace(
        located,
        serving=replace(
            located.serving,
            # Within the largest context longrope's tables do not depend on a text's length.
            rope_types=located.serving.rope_types - {"longrope"},
            rotary_dim=int(located.shape.head_dim * share),
        ),
        max_context=_max_context(config),
    )
