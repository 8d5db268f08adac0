"""GPT-2: queries, keys and values are packed side by side in one `Conv1D`; the MLP has no gate."""

from pruners.architecture.base import (
    Attention,
    ConfigFields,
    HfModule,
    LocatedLayer,
    LocatedModel,
    Mlp,
    Shape,
)
from pruners.architecture.weight_view import Conv1DView

FAMILIES = ("gpt2",)


def _set_heads(module: HfModule, heads: int) -> None:
    module.num_heads = heads
    module.split_size = heads * module.head_dim


def _layer(module: HfModule) -> LocatedLayer:
    attention, mlp = module.attn, module.mlp
    width = attention.c_attn.nf // 3
    q, k, v = (Conv1DView(attention.c_attn, i * width, (i + 1) * width) for i in range(3))
    return LocatedLayer(
        module=module,
        attention=Attention(
            q=q,
            k=k,
            v=v,
            o=Conv1DView(attention.c_proj),
            module=attention,
            scale=attention.scaling,
            set_heads=_set_heads,
        ),
        mlp=Mlp(gate=None, up=Conv1DView(mlp.c_fc), down=Conv1DView(mlp.c_proj)),
        attention_norm=module.ln_1,
        mlp_norm=module.ln_2,
    )


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `GPT2LMHeadModel`."""
    config, body = model.config, model.transformer
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=Shape(
            layers=config.n_layer,
            hidden=config.n_embd,
            heads=config.n_head,
            kv_groups=config.n_head,
            head_dim=config.n_embd // config.n_head,
            ffn=4 * config.n_embd if config.n_inner is None else config.n_inner,
            vocab=config.vocab_size,
            gated=False,
        ),
        layers=[_layer(layer) for layer in body.h],
        embed=body.wte,
        final_norm=body.ln_f,
        head=model.lm_head,
        rotary=None,
        names=ConfigFields(
            layers="n_layer",
            ffn="n_inner",
            bound_to_layer_index=config.scale_attn_by_inverse_layer_idx,
        ),
    )
