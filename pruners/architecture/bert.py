"""BERT: an encoder with a masked language model's head; norms follow the residual sums."""

from pruners.architecture.base import (
    Attention,
    ConfigFields,
    HfModule,
    LocatedLayer,
    LocatedModel,
    Mlp,
    Shape,
)

FAMILIES = ("bert",)


def _set_heads(module: HfModule, heads: int) -> None:
    module.num_attention_heads = heads
    module.all_head_size = heads * module.attention_head_size


def _layer(module: HfModule) -> LocatedLayer:
    attention = module.attention.self
    return LocatedLayer(
        module=module,
        attention=Attention(
            q=attention.query,
            k=attention.key,
            v=attention.value,
            o=module.attention.output.dense,
            module=attention,
            scale=attention.scaling,
            set_heads=_set_heads,
        ),
        mlp=Mlp(gate=None, up=module.intermediate.dense, down=module.output.dense),
        attention_norm=module.attention.output.LayerNorm,
        mlp_norm=module.output.LayerNorm,
    )


def locate(model: HfModule) -> LocatedModel:
    """Locate the parts of a `BertForMaskedLM`."""
    config, body, head = model.config, model.bert, model.cls.predictions
    return LocatedModel(
        family=config.model_type,
        model=model,
        shape=Shape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_groups=config.num_attention_heads,
            head_dim=config.hidden_size // config.num_attention_heads,
            ffn=config.intermediate_size,
            vocab=config.vocab_size,
            gated=False,
        ),
        layers=[_layer(layer) for layer in body.encoder.layer],
        embed=body.embeddings.word_embeddings,
        final_norm=head.transform,
        head=head.decoder,
        rotary=None,
        names=ConfigFields(),
        norm_in_head=True,
        causal=config.is_decoder,
    )
