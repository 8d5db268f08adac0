"""OPT: every projection has a bias; the ungated MLP's projections are attributes of the layer."""

from torch import nn

from pruners.architecture.base import (
    Attention,
    ConfigFields,
    HfModule,
    LocatedLayer,
    LocatedModel,
    Mlp,
    Shape,
)

FAMILIES = ("opt",)


def _set_heads(module: HfModule, heads: int) -> None:
    module.num_heads = heads


def _layer(module: HfModule) -> LocatedLayer:
    attention = module.self_attn
    return LocatedLayer(
        module=module,
        attention=Attention(
            q=attention.q_proj,
            k=attention.k_proj,
            v=attention.v_proj,
            o=attention.out_proj,
            module=attention,
            scale=attention.scaling,
            set_heads=_set_heads,
        ),
        mlp=Mlp(gate=None, up=module.fc1, down=module.fc2),
        attention_norm=module.self_attn_layer_norm,
        mlp_norm=module.final_layer_norm,
    )


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of an `OPTForCausalLM`."""
    config, body = model.config, model.model.decoder
    # OPT-350m has no final norm, but projects to an embedding narrower than its hidden states.
    ends = [part for part in (body.final_layer_norm, body.project_out) if part is not None]
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=Shape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_groups=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            ffn=config.ffn_dim,
            vocab=config.vocab_size,
            gated=False,
        ),
        layers=[_layer(layer) for layer in body.layers],
        embed=body.embed_tokens,
        final_norm=nn.Sequential(*ends),
        head=model.lm_head,
        rotary=None,
        names=ConfigFields(ffn="ffn_dim"),
    )
