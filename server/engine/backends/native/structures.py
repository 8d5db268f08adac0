"""The structures of `csrc/include/native.h`, field by field, and helpers to fill them in.

A structure holds addresses only: what it points at must live as long as the structure is used.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_uint64, c_void_p

from torch import Tensor


class MatrixStruct(Structure):
    """`TrimMatrix`: a packed matrix `[outputs, inputs]`."""

    _fields_ = (
        ("data", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("bits", c_int32),
        ("input_major", c_int32),
    )


class HeadScreenStruct(Structure):
    """`TrimHeadScreen`: the coarse copy of an output head."""

    _fields_ = (
        *((name, c_void_p) for name in ("data", "planes", "order", "factor", "mean")),
        *((name, c_void_p) for name in ("scale", "spread")),
        *((name, c_void_p) for name in ("code_error", "input_error", "max_error")),
    )


class DrawStruct(Structure):
    """`TrimDraw`: how an output is drawn for one row."""

    _fields_ = (
        *((name, c_float) for name in ("temperature", "top_p", "min_p")),
        ("top_k", c_int32),
        ("key", c_uint64),
        ("allowed", c_void_p),
    )


class InputCorrectionStruct(Structure):
    """`TrimInputCorrection`: the part of a correction in front of a sub-block."""

    _fields_ = (
        ("norm", c_void_p),
        ("inner", POINTER(MatrixStruct)),
        ("outer", POINTER(MatrixStruct)),
    )


class CorrectionStruct(Structure):
    """`TrimCorrection`: a variant's correction of one sub-block."""

    _fields_ = (
        ("inner", POINTER(MatrixStruct)),
        ("outer", POINTER(MatrixStruct)),
        ("bias", c_void_p),
        ("replaces", c_int32),
        ("input", POINTER(InputCorrectionStruct)),
    )


class LayerStruct(Structure):
    """`TrimLayer`: the weights of one layer."""

    _fields_ = (
        ("qkv", MatrixStruct),
        ("o", MatrixStruct),
        ("gate_up", MatrixStruct),
        ("down", MatrixStruct),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("attention_out_norm", c_void_p),
        ("mlp_out_norm", c_void_p),
        ("qk_norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("window", c_int32),
        ("wide_qk_norm", c_int32),
    )


class ModelStruct(Structure):
    """`TrimModel`: all layers, the embedding, and the model's sizes."""

    _fields_ = (
        ("layer", POINTER(LayerStruct)),
        ("embed", MatrixStruct),
        ("final_norm", c_void_p),
        *((name, c_int32) for name in ("layers", "hidden", "groups", "queries", "head_dim")),
        *((name, c_int32) for name in ("rotated", "ffn", "activation")),
        *((name, c_float) for name in ("eps", "embed_scale", "softmax_scale", "residual_scale")),
    )


class VariantStruct(Structure):
    """`TrimVariant`: the widths and the corrections of a variant, by layer."""

    _fields_ = (
        ("groups", POINTER(c_int32)),
        ("ffn", POINTER(c_int32)),
        ("attention", POINTER(POINTER(CorrectionStruct))),
        ("mlp", POINTER(POINTER(CorrectionStruct))),
    )


class KVMapsStruct(Structure):
    """`TrimKVMaps`: maps to the keys and values of the layers from a depth on."""

    _fields_ = (("matrix", MatrixStruct), ("depth", c_int32))


class CacheStruct(Structure):
    """`TrimCache`: the keys and values of all sequences."""

    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("slots", c_int64),
    )


class BatchStruct(Structure):
    """`TrimBatch`: the rows and segments of one step."""

    _fields_ = (
        ("rows", c_int32),
        ("segments", c_int32),
        *((name, c_void_p) for name in ("tokens", "positions", "slots")),
        *((name, c_void_p) for name in ("row_offsets", "output_rows", "variants")),
        *((name, c_void_p) for name in ("cache_start", "cache_length")),
        *((name, c_void_p) for name in ("slot_positions", "slot_positions_stride")),
        ("recent_queries", c_void_p),
        ("query_window", c_int32),
        *((name, c_void_p) for name in ("shallow", "maps")),
        *((name, c_void_p) for name in ("page_bounds", "page_bounds_stride", "pages_taken")),
    )


STRUCTURES: tuple[type[Structure], ...] = (
    MatrixStruct,
    HeadScreenStruct,
    DrawStruct,
    InputCorrectionStruct,
    CorrectionStruct,
    LayerStruct,
    ModelStruct,
    VariantStruct,
    KVMapsStruct,
    CacheStruct,
    BatchStruct,
)
"""All structures, in the order of `native.h`."""

ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}
"""The number of each activation function in `TrimModel`, by its name in `transformers`."""


def address_of(tensor: Tensor | None) -> int | None:
    """Return the address of a contiguous tensor's first element, or None without a tensor."""
    return None if tensor is None else tensor.data_ptr()


def int32_array(values: Sequence[int]) -> ctypes.Array[c_int32]:
    """Return a C array of these numbers."""
    return (c_int32 * len(values))(*values)
