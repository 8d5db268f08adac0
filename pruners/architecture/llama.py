"""Llama and the families that kept its module names: Mistral, Qwen2, Qwen3, SmolLM."""

from pruners.architecture.base import (
    Attention,
    ConfigNames,
    Decoder,
    HfModule,
    Layer,
    Mlp,
    Shape,
)

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
NAMES = ConfigNames(heads="num_attention_heads", kv_groups="num_key_value_heads")


def shape_of(config: HfModule) -> Shape:
    """Sizes from a Llama-like `transformers` configuration."""
    heads = config.num_attention_heads
    hidden = config.hidden_size
    return Shape(
        layers=config.num_hidden_layers,
        hidden=hidden,
        heads=heads,
        kv_groups=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or hidden // heads,
        ffn=config.intermediate_size,
        vocab=config.vocab_size,
    )


def attention_of(module: HfModule) -> Attention:
    """The projections of a Llama-named attention module, with the per-head norms it may have."""
    return Attention(
        q=module.q_proj,
        k=module.k_proj,
        v=module.v_proj,
        o=module.o_proj,
        module=module,
        q_norm=getattr(module, "q_norm", None),
        k_norm=getattr(module, "k_norm", None),
    )


def mlp_of(module: HfModule) -> Mlp:
    """The projections of a Llama-named gated feed-forward module."""
    return Mlp(gate=module.gate_proj, up=module.up_proj, down=module.down_proj)


def window_of(config: HfModule, index: int) -> int | None:
    """How many tokens a token of layer `index` sees, if its attention slides."""
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[index] != "sliding_attention":
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _layer(config: HfModule, index: int, module: HfModule) -> Layer:
    return Layer(
        module=module,
        attention=attention_of(module.self_attn),
        mlp=mlp_of(module.mlp),
        attention_norm=module.input_layernorm,
        mlp_norm=module.post_attention_layernorm,
        window=window_of(config, index),
    )


def locate(model: HfModule) -> Decoder:
    """Takes a `*ForCausalLM` of these families apart."""
    body = model.model
    return Decoder(
        family=model.config.model_type,
        model=model,
        shape=shape_of(model.config),
        layers=[_layer(model.config, index, layer) for index, layer in enumerate(body.layers)],
        embed=body.embed_tokens,
        final_norm=body.norm,
        head=model.lm_head,
        rotary=body.rotary_emb,
        names=NAMES,
    )
