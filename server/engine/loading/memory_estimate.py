"""How much memory a served model takes, known before any of it is loaded. Needs no PyTorch.

What is counted: the weights in the layout in which they are served, the KV cache for a number of
tokens, the rotary tables, and what the process takes beside them. Artefacts are not counted.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pruners.support.errors import UserError
from server.engine.precision import BITS, Precision

MIN_KV_TOKENS = 1024
"""Tokens of the smallest KV cache that a server starts with."""
PROCESS_BYTES = 450 * 10**6
"""What a server takes beside weights and cache: interpreter, libraries, tokenizer, scratch."""

_EXACT_4BIT = {"Q4_0", "Q4_1", "Q4_K"}
"""Types that are served in 4 bits where possible; all other quantised ones have 8."""
_FLOATS = {"F64", "F32", "F16", "BF16"}
_PACKED_BYTES = {4: (16 * 32 // 2 + 64) / (16 * 32), 8: (16 * 32 + 32) / (16 * 32)}
"""Of a weight, by its bits: a block of 16 outputs by 32 inputs has its scales behind it."""
_FLOAT_BYTES = {"fp32": 4, "bf16": 2}
_SCREEN_BITS = 2 * (4 / 18 + 2 * 5 / 18 + 12 / 18)  # of a weight in the coarse copy of the head


class MemoryEstimateError(UserError):
    """A model does not fit, or it cannot be told. One line: by how much, and what would fit."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint: its shape, and its type such as `BF16` or `Q4_K`."""

    shape: tuple[int, ...]
    kind: str


@dataclass(frozen=True, slots=True)
class StoredModel:
    """What an estimate needs to know of a model: its tensors by name and a few sizes.

    `tensors` have the names of `transformers`. `context` is the model's own longest text in tokens.
    """

    tensors: Mapping[str, StoredTensor]
    layers: int
    kv_groups: int
    head_dim: int
    context: int

    @classmethod
    def of(cls, config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> "StoredModel":
        """Return it from a configuration of `transformers`, as its dictionary.

        Raises `MemoryEstimateError` if sizes are missing or no numbers.
        """
        text = config.get("text_config") or config
        try:
            heads = int(text["num_attention_heads"])
            return cls(
                tensors,
                layers=int(text["num_hidden_layers"]),
                kv_groups=int(text.get("num_key_value_heads") or heads),
                head_dim=int(text.get("head_dim") or int(text["hidden_size"]) // heads),
                context=int(text["max_position_embeddings"]),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise MemoryEstimateError(f"the model's configuration lacks a size: {error}") from error

    def token_bytes(self, kv_cache: str) -> int:
        """Return what one token takes in a cache of `fp32`, `bf16` or `int8`."""
        vectors = 2 * self.layers * self.kv_groups
        return vectors * vector_bytes(self.head_dim, kv_cache)


def vector_bytes(head_dim: int, kv_cache: str) -> int:
    """Return what a key or a value takes in a cache of `fp32`, `bf16` or `int8` with its scale."""
    return head_dim + 4 if kv_cache == "int8" else head_dim * _FLOAT_BYTES[kv_cache]


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served: on the GPU or not, with packed weights or not, in what precision.

    `packs` is whether the native kernels are there, `multiplies_bf16` whether the processor
    multiplies bf16 by itself. `context` limits the model's own; None stands for that.
    """

    weights: Precision = "auto"
    gpu: bool = False
    packs: bool = True
    multiplies_bf16: bool = False
    context: int | None = None

    def precision(self, tensors: Collection[StoredTensor]) -> Precision:
        """Return what `auto` stands for with these tensors, any other precision as it is."""
        if self.weights != "auto":
            return self.weights
        if self.gpu:
            return "bf16"
        matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
        quantised = [tensor for tensor in matrices if tensor.kind not in _FLOATS]
        if self.packs and 2 * _numbers(quantised) > _numbers(matrices):
            return "int4" if any(t.kind in _EXACT_4BIT for t in quantised) else "int8"
        return "bf16" if self.multiplies_bf16 else "fp32"


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes that a served model takes, by what takes them. `tables` are the rotary tables."""

    precision: Precision
    weights: int
    cache: int
    tables: int
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """Return all bytes together."""
        return self.weights + self.cache + self.tables + self.process


def memory_estimate(
    model: StoredModel, serving: Serving, kv_tokens: int = MIN_KV_TOKENS, kv_cache: str = "auto"
) -> MemoryEstimate:
    """Return what a model takes with a cache of `kv_tokens` tokens in `kv_cache`.

    `auto` is the type that goes with the weights.
    """
    precision = serving.precision(list(model.tensors.values()))
    if kv_cache == "auto":
        kv_cache = precision if precision in _FLOAT_BYTES else "bf16"
    positions = min(model.context, serving.context or model.context)
    return MemoryEstimate(
        precision,
        weights=_weight_bytes(model.tensors, precision, serving),
        cache=kv_tokens * model.token_bytes(kv_cache),
        tables=2 * 4 * positions * model.head_dim,
    )


def check_fits(model: StoredModel, serving: Serving, free_bytes: float, kv_tokens: int) -> None:
    """Raise `MemoryEstimateError`, which says by how much a model does not fit and what would.

    `kv_tokens` is the smallest cache that will do.
    """
    needed = memory_estimate(model, serving, kv_tokens)
    if needed.total > free_bytes:
        raise _does_not_fit(needed, free_bytes, kv_tokens, _advice(model, serving, free_bytes))


def check_packed_fits(needed: MemoryEstimate, free_bytes: float, kv_tokens: int) -> None:
    """Raise `MemoryEstimateError` if weights that are packed already do not fit.

    `needed` is with a cache of `kv_tokens` tokens, the smallest that will do.
    """
    if needed.total > free_bytes:
        advice = "free some memory, or serve fewer bits or a smaller model"
        raise _does_not_fit(needed, free_bytes, kv_tokens, advice)


def _does_not_fit(
    needed: MemoryEstimate, free_bytes: float, kv_tokens: int, advice: str
) -> MemoryEstimateError:
    return MemoryEstimateError(
        f"the model needs {_gb(needed.total)} (weights in {needed.precision} {_gb(needed.weights)},"
        f" KV cache of {kv_tokens:,} tokens {_gb(needed.cache)}, else"
        f" {_gb(needed.tables + needed.process)}), {_gb(free_bytes)} are free:"
        f" {_gb(needed.total - free_bytes)} too little; {advice}"
    )


def _advice(model: StoredModel, serving: Serving, free_bytes: float) -> str:
    """Say what would fit: the least change of the settings first."""
    if memory_estimate(model, serving).total <= free_bytes:
        rest = free_bytes - memory_estimate(model, serving, 0).total
        tokens = int(rest // memory_estimate(model, serving, 1).cache)
        return f"it fits with kv_tokens {tokens}"
    current = serving.precision(list(model.tensors.values()))
    ways: list[tuple[Precision, int | None]] = [(current, MIN_KV_TOKENS)]
    if not serving.gpu:
        order: tuple[Precision, ...] = ("fp32", "bf16", "int8", "int4")
        fewer = order[order.index(current) + 1 :]
        ways += [(bits, context) for bits in fewer for context in (serving.context, MIN_KV_TOKENS)]
    for precision, context in ways:
        tried = Serving(precision, serving.gpu, serving.packs, serving.multiplies_bf16, context)
        if memory_estimate(model, tried).total <= free_bytes:
            shorter = "" if context == serving.context else f" and context {context}"
            given = "" if precision == current else f" weights {precision}"
            return f"it fits with{given}{shorter if given else shorter.removeprefix(' and')}"
    return "not even in 4 bits and with a short context does it fit: serve a smaller model"


def _weight_bytes(
    tensors: Mapping[str, StoredTensor], precision: Precision, serving: Serving
) -> int:
    """Return the bytes of all weights as they are served; vectors such as norms are fp32."""
    total = 0.0
    exact = serving.weights == "auto" or _mostly_exact(tensors.values())
    for name, tensor in tensors.items():
        numbers = math.prod(tensor.shape)
        if len(tensor.shape) != 2:
            total += 4 * numbers
        elif precision not in BITS:
            total += _FLOAT_BYTES[precision] * numbers
        elif not serving.packs:
            total += 4 * numbers
        else:
            bits = 8 if exact and tensor.kind not in _EXACT_4BIT else BITS[precision]
            total += _PACKED_BYTES[bits] * _padded(*tensor.shape)
            if bits == 8 and _is_head(name, tensors):
                total += _SCREEN_BITS / 8 * _padded(*tensor.shape)
    return int(total)


def _mostly_exact(tensors: Collection[StoredTensor]) -> bool:
    """Return whether most values are of a type that 4 bits hold."""
    matrices = [tensor for tensor in tensors if len(tensor.shape) == 2]
    return 2 * _numbers([t for t in matrices if t.kind in _EXACT_4BIT]) > _numbers(matrices)


def _is_head(name: str, tensors: Mapping[str, StoredTensor]) -> bool:
    """Return whether a tensor is the head, which a model may share with its embedding."""
    return name.endswith("lm_head.weight") or (
        name.endswith("embed_tokens.weight") and "lm_head.weight" not in tensors
    )


def _numbers(tensors: Collection[StoredTensor]) -> int:
    return sum(math.prod(tensor.shape) for tensor in tensors)


def _padded(outputs: int, inputs: int) -> int:
    """Return the weights of a matrix whose sides are padded to whole blocks."""
    return -(-outputs // 16) * 16 * -(-inputs // 32) * 32


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
