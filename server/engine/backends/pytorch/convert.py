"""Converts a base to the layout in which every variant is a prefix, layer by layer."""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pruners.architecture import (
    Attention,
    LocatedLayer,
    LocatedModel,
    ServingConfig,
    Shape,
    UnsupportedModelError,
    stored_module,
)
from pruners.realization.order import feature_indices
from server.engine.backends.matrix import Matrix, Parameters, Projection, join_rows
from server.engine.backends.pytorch.linear import SliceableLinear
from server.engine.backends.pytorch.rope import RopeFrequencies, rope_frequencies, rope_tables
from server.engine.backends.pytorch.weights import (
    ACTIVATIONS,
    LayerParts,
    LayerWeights,
    PyTorchWeights,
    RMSNorm,
    WideNorm,
)

_STATIC_ROPE = {"default", "linear", "llama3", "yarn"}


class ConvertedBase:
    """A base in the order of serving, the most important units first. It holds no weights.

    Each layer is read, and put in order, when it is asked for. A new order of neurons and groups
    leaves the function unchanged up to rounding. `context` is the largest number of tokens of a
    prompt and its answer.
    """

    def __init__(
        self,
        located: LocatedModel,
        parameters: Parameters,
        ffn_order: Tensor | None,
        kv_order: Tensor | None,
        context: int,
    ) -> None:
        """Take an outline, what reads its parameters, and the orders of units.

        `ffn_order` is int `[layers, ffn]` and `kv_order` int `[layers, kv_groups]`; None keeps the
        order. Raises `UnsupportedModelError`.
        """
        self.located = located
        self.parameters = parameters
        self.context = context
        self.serving = check_served(located)
        self.shape: Shape = located.shape
        self.tied = bool(located.model.config.tie_word_embeddings)
        self._ffn_order = ffn_order
        self._kv_order = kv_order

    @property
    def embed_scale(self) -> float:
        """Return the scale of embeddings, in families that do so rounded to the values' dtype."""
        if self.serving.rounds_embed_scale:
            return float(torch.tensor(self.serving.embed_scale).to(self.parameters.dtype))
        return self.serving.embed_scale

    @property
    def residual_scale(self) -> float:
        """Return what the output of a block is multiplied by before the residual sum."""
        return self.located.layers[0].residual_scale

    @property
    def head(self) -> nn.Linear:
        """Return the module of the output head's weight."""
        stored: nn.Linear | Any = stored_module(self.located.head)
        return stored

    @property
    def softmax_scale(self) -> float:
        """Return the scale of the products of queries and keys."""
        return self.located.layers[0].attention.scale

    @cached_property
    def frequencies(self) -> dict[str | None, RopeFrequencies]:
        """Return the frequencies of rotary embeddings, by kind. Raises `UnsupportedModelError`."""
        return rope_frequencies(self.located)

    def final_norm(self) -> RMSNorm:
        """Read the norm behind the last layer, divided by what the family divides logits by.

        That rounds its weight in fp32; a power of two changes nothing but the exponent.
        """
        norm, scale = self._norm(self.located.final_norm), self.serving.logits_scale
        return norm if scale == 1.0 else RMSNorm(norm.weight.float() / scale, norm.eps, norm.dtype)

    def layers(self) -> Iterator[LayerParts[Projection]]:
        """Read one layer after another. What one has mapped is released when it was used."""
        for index, layer in enumerate(self.located.layers):
            kv = None if self._kv_order is None else self._kv_order[index].long()
            ffn = None if self._ffn_order is None else self._ffn_order[index].long()
            yield self._layer(layer, kv, ffn)
            self.parameters.release(layer.module)

    def _layer(
        self, layer: LocatedLayer, kv: Tensor | None, ffn: Tensor | None
    ) -> LayerParts[Projection]:
        attention, mlp = layer.attention, layer.mlp
        return LayerParts(
            attention_norm=self._optional_norm(layer.attention_norm),
            qkv=self._qkv(attention, kv),
            qk_norm=self._qk_norm(attention, kv),
            o=self._inputs(attention.o, self._head_features(kv)),
            attention_out_norm=self._optional_norm(layer.attention_out_norm),
            mlp_norm=self._optional_norm(layer.mlp_norm),
            gate=self._outputs(mlp.gate, ffn),
            up=self._outputs(mlp.up, ffn),
            down=self._inputs(mlp.down, ffn),
            mlp_out_norm=self._optional_norm(layer.mlp_out_norm),
            window=layer.window,
            rope=layer.rope_layer_type,
        )

    def _norm(self, module: nn.Module) -> RMSNorm:
        weight, names = self.parameters.norm(module), self.located.names
        if names.norm_rounds_last:
            weight = names.norm_shift + weight.float()
        return RMSNorm(weight, self.serving.norm_eps, self.parameters.dtype)

    def _optional_norm(self, module: nn.Module | None) -> RMSNorm | None:
        return None if module is None else self._norm(module)

    def _outputs(self, module: nn.Linear, order: Tensor | None) -> Projection:
        """Read a linear layer with its outputs in the given order, int64 `[outputs]`."""
        matrix, bias = self.parameters.matrix(module), self.parameters.bias(module)
        if order is None:
            return Projection(matrix, bias)
        moved = join_rows(lambda part: part[order], matrix)
        return Projection(moved, None if bias is None else bias[order])

    def _inputs(self, module: nn.Linear, order: Tensor | None) -> Projection:
        """Read a linear layer with its inputs in the given order, int64 `[inputs]`."""
        matrix = self.parameters.matrix(module).columns(order)
        return Projection(matrix, self.parameters.bias(module))

    def _head_features(self, order: Tensor | None) -> Tensor | None:
        """Return the order of the inputs of `o`, which are the heads of all groups."""
        width = self.shape.queries_per_group * self.shape.head_dim
        return None if order is None else feature_indices(order, width)

    def _qkv(self, attention: Attention, order: Tensor | None) -> Projection:
        """Join q, k and v group after group, with the groups in the given order, `[kv_groups]`.

        The outputs are `kv_groups * (queries_per_group + 2) * head_dim`.
        """
        groups = self.shape.kv_groups

        def join(*parts: Tensor) -> Tensor:
            """Join weights `[heads * head_dim, hidden]` or biases `[heads * head_dim]`."""
            joined = torch.cat([part.unflatten(0, (groups, -1)) for part in parts], dim=1)
            return (joined if order is None else joined[order]).flatten(0, 1)

        matrix = join_rows(join, *(self.parameters.matrix(one) for one in attention.inputs))
        biases = [self.parameters.bias(one) for one in attention.inputs]
        found = [bias for bias in biases if bias is not None]
        return Projection(matrix, join(*found) if found else None)

    def _qk_norm(self, attention: Attention, order: Tensor | None) -> RMSNorm | None:
        """Join the norms of queries and key: a weight `[queries_per_group + 1, head_dim]`.

        A norm of all heads has one for each group, in the order int64 `[kv_groups]`.
        """
        q, k = self._optional_norm(attention.q_norm), self._optional_norm(attention.k_norm)
        if q is None or k is None:
            return None
        if attention.norms_all_heads:
            groups, dim = self.shape.kv_groups, self.shape.head_dim
            joined = torch.cat([one.weight.view(groups, -1, dim) for one in (q, k)], dim=1)
            return WideNorm(joined if order is None else joined[order], q.eps, q.dtype)
        weight = torch.cat([q.weight.expand(self.shape.queries_per_group, -1), k.weight[None]])
        return RMSNorm(weight, q.eps, q.dtype)


def convert_weights(
    base: ConvertedBase,
    device: torch.device,
    values_of: Callable[[Matrix], Tensor] = Matrix.values,
) -> PyTorchWeights:
    """Read a base into PyTorch tensors on a device, layer by layer.

    `values_of` returns the values of a matrix that are computed with.
    """

    def linear(matrix: Matrix, bias: Tensor | None) -> SliceableLinear:
        values = values_of(matrix).to(base.parameters.dtype).contiguous()
        return SliceableLinear(values.to(device), None if bias is None else bias.to(device))

    def norm(one: RMSNorm) -> RMSNorm:
        return type(one)(one.weight.to(device), one.eps, one.dtype)

    def moved(part: object) -> object:
        if isinstance(part, Projection):
            return linear(part.matrix, part.bias)
        return norm(part) if isinstance(part, RMSNorm) else part

    located, parameters = base.located, base.parameters
    layers = []
    for layer in base.layers():
        parts = {name: moved(part) for name, part in layer.fields().items()}
        layers.append(LayerWeights(**parts))  # type: ignore[arg-type]
    head = linear(parameters.matrix(base.head), parameters.bias(base.head))
    embed = head if base.tied else linear(parameters.matrix(located.embed), None)
    table_dtype = torch.float32 if base.serving.rotates_in_fp32 else parameters.dtype
    tables = rope_tables(base.frequencies, base.context, table_dtype)
    return PyTorchWeights(
        shape=base.shape,
        dtype=parameters.dtype,
        embed=embed.weight,
        embed_scale=base.embed_scale,
        layers=layers,
        final_norm=norm(base.final_norm()),
        head=head,
        rope={kind: (cos.to(device), sin.to(device)) for kind, (cos, sin) in tables.items()},
        softmax_scale=base.softmax_scale,
        residual_scale=base.residual_scale,
        activation_name=base.serving.activation,
        context=base.context,
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
