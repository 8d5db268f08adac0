"""Converts a loaded model to the layout in which every variant is a prefix."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pruners.architecture import (
    Attention,
    LocatedLayer,
    LocatedModel,
    ServingConfig,
    Shape,
    UnsupportedModelError,
)
from server.engine.backends.pytorch.linear import SliceableLinear
from server.engine.backends.pytorch.weights import (
    ACTIVATIONS,
    LayerWeights,
    PyTorchWeights,
    RMSNorm,
)

_EXTRA_POSITIONS = 512  # beyond the context, for which evictions predict queries
_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


def convert_weights(
    located: LocatedModel, ffn_order: Tensor | None, kv_order: Tensor | None, context: int
) -> PyTorchWeights:
    """Move a loaded model's weights into the serving layout, most important units first.

    `ffn_order` is int `[layers, ffn]` and `kv_order` int `[layers, kv_groups]`; None keeps the
    order. A new order of neurons and groups leaves the function unchanged up to rounding. The
    model's matrices are released layer by layer, so the peak of memory is one layer above the
    model. Raises `UnsupportedModelError`.
    """
    serving = check_served(located)
    dtype = located.embed.weight.dtype

    def norm(module: nn.Module | None) -> RMSNorm | None:
        if module is None:
            return None
        weight = next(module.parameters()).detach()
        shift = located.names.norm_shift
        # A family that shifts its norms multiplies in fp32.
        return RMSNorm(shift + weight.float() if shift else weight, serving.norm_eps, dtype)

    layers = []
    with torch.no_grad():
        for index, layer in enumerate(located.layers):
            kv = None if kv_order is None else kv_order[index].long()
            ffn = None if ffn_order is None else ffn_order[index].long()
            layers.append(_convert_layer(located, layer, kv, ffn, norm))
    final_norm = norm(located.final_norm)
    assert final_norm is not None
    return PyTorchWeights(
        shape=located.shape,
        dtype=dtype,
        embed=located.embed.weight.detach(),
        # Rounded as in `transformers`, where the scale is a tensor of the embedding's dtype.
        embed_scale=float(torch.tensor(serving.embed_scale).to(dtype)),
        layers=layers,
        final_norm=final_norm,
        head=SliceableLinear(located.head.weight.detach(), _bias(located.head)),
        rope=_rope_tables(located, context + _EXTRA_POSITIONS),
        softmax_scale=located.layers[0].attention.scale,
        activation_name=serving.activation,
        context=context,
    )


def check_served(located: LocatedModel) -> ServingConfig:
    """Return how the family computes. Raises `UnsupportedModelError` for what is not supported."""
    serving = located.serving
    if serving is None:
        raise UnsupportedModelError(f"model family '{located.family}' is not served")
    refusals = list(serving.refusals)
    if serving.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        refusals.append(
            f"{serving.activation_field} '{serving.activation}' is not supported (but {known})"
        )
    for kind in sorted(serving.rope_types - _STATIC_ROPE):
        known = ", ".join(sorted(_STATIC_ROPE))
        refusals.append(f"rope_parameters of type '{kind}' is not supported (but {known})")
    if refusals:
        raise UnsupportedModelError(f"config.json: {'; '.join(refusals)}")
    return serving


def _convert_layer(
    located: LocatedModel,
    layer: LocatedLayer,
    kv: Tensor | None,
    ffn: Tensor | None,
    norm: Callable[[nn.Module | None], RMSNorm | None],
) -> LayerWeights:
    attention, mlp = layer.attention, layer.mlp
    attention_norm, mlp_norm = norm(layer.attention_norm), norm(layer.mlp_norm)
    assert attention_norm is not None
    assert mlp_norm is not None
    converted = LayerWeights(
        attention_norm=attention_norm,
        qkv=_fuse_qkv(attention, located.shape, kv),
        qk_norm=_fuse_qk_norm(attention, located.shape, norm),
        o=_order_o(attention, located.shape, kv),
        attention_out_norm=norm(layer.attention_out_norm),
        mlp_norm=mlp_norm,
        gate=_rows(mlp.gate, ffn),
        up=_rows(mlp.up, ffn),
        down=_columns(mlp.down, ffn),
        mlp_out_norm=norm(layer.mlp_out_norm),
        window=layer.window,
        rope=layer.rope_layer_type,
    )
    for module in (attention.q, attention.k, attention.v, attention.o, mlp.gate, mlp.up, mlp.down):
        module.weight = nn.Parameter(torch.empty(0), requires_grad=False)
    return converted


def _bias(module: nn.Linear) -> Tensor | None:
    return None if module.bias is None else module.bias.detach()


def _rows(module: nn.Linear, order: Tensor | None) -> SliceableLinear:
    """Copy a linear layer with its outputs in the given order, int64 `[outputs]`."""
    weight, bias = module.weight.detach(), _bias(module)
    if order is None:
        return SliceableLinear(weight.clone(), bias)
    return SliceableLinear(weight[order], None if bias is None else bias[order])


def _columns(module: nn.Linear, order: Tensor | None) -> SliceableLinear:
    """Copy a linear layer with its inputs in the given order, int64 `[inputs]`."""
    weight = module.weight.detach()
    return SliceableLinear(weight.clone() if order is None else weight[:, order], _bias(module))


def _fuse_qkv(attention: Attention, shape: Shape, order: Tensor | None) -> SliceableLinear:
    """Join q, k and v group after group, with the groups in the given order, int64 `[kv_groups]`.

    The outputs are `kv_groups * (queries_per_group + 2) * head_dim`.
    """

    def fuse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Join weights `[heads * head_dim, hidden]` or biases `[heads * head_dim]`."""
        groups, dim, rest = shape.kv_groups, shape.head_dim, q.shape[1:]
        parts = (
            q.reshape(groups, shape.queries_per_group * dim, *rest),
            k.reshape(groups, dim, *rest),
            v.reshape(groups, dim, *rest),
        )
        fused = torch.cat(parts, dim=1)
        return (fused if order is None else fused[order]).flatten(0, 1).contiguous()

    q, k, v = attention.q, attention.k, attention.v
    bias = None if q.bias is None else fuse(q.bias.detach(), k.bias.detach(), v.bias.detach())
    return SliceableLinear(fuse(q.weight.detach(), k.weight.detach(), v.weight.detach()), bias)


def _order_o(attention: Attention, shape: Shape, order: Tensor | None) -> SliceableLinear:
    """Copy `o`, whose inputs are the heads, with the groups in the given order, `[kv_groups]`."""
    weight = attention.o.weight.detach()
    if order is None:
        return SliceableLinear(weight.clone(), _bias(attention.o))
    blocks = weight.reshape(weight.shape[0], shape.kv_groups, -1)[:, order]
    return SliceableLinear(blocks.flatten(1).contiguous(), _bias(attention.o))


def _fuse_qk_norm(
    attention: Attention, shape: Shape, norm: Callable[[nn.Module | None], RMSNorm | None]
) -> RMSNorm | None:
    """Join the norms of queries and key: a weight `[queries_per_group + 1, head_dim]`."""
    q, k = norm(attention.q_norm), norm(attention.k_norm)
    if q is None or k is None:
        return None
    weight = torch.cat([q.weight.expand(shape.queries_per_group, -1), k.weight[None]])
    return RMSNorm(weight, q.eps, q.dtype)


def _rope_tables(located: LocatedModel, context: int) -> dict[str | None, tuple[Tensor, Tensor]]:
    """Return cos and sin by kind, each `[context, head_dim]`, from the model's rotary module.

    The first half of sin has its sign changed: rotating is `x * cos + roll(x, dim / 2) * sin`.
    """
    tables = {}
    with torch.no_grad():
        for kind in {layer.rope_layer_type for layer in located.layers}:
            cos, sin = (t.clone() for t in located.rope_tables(torch.arange(context), kind))
            if sin.shape[1] != located.shape.head_dim:
                raise UnsupportedModelError(
                    f"rotary tables of {sin.shape[1]} for heads of {located.shape.head_dim} "
                    "(partial_rotary_factor or head_dim in config.json) are not supported"
                )
            sin[:, : sin.shape[1] // 2].neg_()
            tables[kind] = (cos, sin)
    return tables
