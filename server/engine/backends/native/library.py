"""The compiled kernels, if they were built: structures and functions of `native/native.h`."""

import ctypes
import importlib.machinery
import logging
import os
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_char_p, c_float, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path

from torch import Tensor

log = logging.getLogger(__name__)


class Matrix(Structure):
    _fields_ = (
        ("data", c_void_p),
        ("bias", c_void_p),
        ("outputs", c_int32),
        ("inputs", c_int32),
        ("bits", c_int32),
        ("input_major", c_int32),
    )


class Preview(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("data", "planes", "order", "factor", "mean")),
        *((name, c_void_p) for name in ("scale", "spread", "doubt", "loss", "worst")),
    )


class Entry(Structure):
    _fields_ = (
        ("norm", c_void_p),
        ("inner", POINTER(Matrix)),
        ("outer", POINTER(Matrix)),
    )


class Own(Structure):
    _fields_ = (
        ("inner", POINTER(Matrix)),
        ("outer", POINTER(Matrix)),
        ("bias", c_void_p),
        ("replaces", c_int32),
        ("entry", POINTER(Entry)),
    )


class Layer(Structure):
    _fields_ = (
        ("qkv", Matrix),
        ("o", Matrix),
        ("gate_up", Matrix),
        ("down", Matrix),
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("attention_out_norm", c_void_p),
        ("mlp_out_norm", c_void_p),
        ("qk_norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("window", c_int32),
    )


class Model(Structure):
    _fields_ = (
        ("layer", POINTER(Layer)),
        ("embed", Matrix),
        ("final_norm", c_void_p),
        *((name, c_int32) for name in ("layers", "hidden", "groups", "queries", "head_dim")),
        *((name, c_int32) for name in ("ffn", "activation")),
        *((name, c_float) for name in ("eps", "embed_scale", "softmax_scale")),
    )


class Variant(Structure):
    _fields_ = (
        ("groups", POINTER(c_int32)),
        ("ffn", POINTER(c_int32)),
        ("attention", POINTER(POINTER(Own))),
        ("mlp", POINTER(POINTER(Own))),
    )


class Cache(Structure):
    _fields_ = (
        ("keys", c_void_p),
        ("values", c_void_p),
        ("key_scales", c_void_p),
        ("value_scales", c_void_p),
        ("slots", c_int64),
    )


class Batch(Structure):
    _fields_ = (
        ("rows", c_int32),
        ("segments", c_int32),
        *(
            (name, c_void_p)
            for name in ("tokens", "positions", "slots", "first", "read", "variants")
        ),
        *((name, c_void_p) for name in ("start", "held", "cached", "cached_stride", "noted")),
        ("query_window", c_int32),
    )


ACTIVATIONS = {"silu": 0, "gelu": 1, "gelu_pytorch_tanh": 2}


def pointer(tensor: Tensor | None) -> int | None:
    """The address of a contiguous tensor's first element."""
    return None if tensor is None else tensor.data_ptr()


def int32s(values: Sequence[int]) -> ctypes.Array[c_int32]:
    """A C array of these numbers."""
    return (c_int32 * len(values))(*values)


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, or None where they were not built.

    `TRIMTAB_NATIVE` may name another build of them, or hide them with `0`.
    """
    given = os.environ.get("TRIMTAB_NATIVE")
    folder = Path(__file__).parent
    names = [f"_native{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
    paths = [Path(given)] if given else [folder / name for name in names]
    for path in paths:
        if path.exists():
            try:
                return _declared(ctypes.CDLL(str(path)))
            except OSError as error:
                log.warning("cannot load the native kernels: %s", error)
    return None


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    found.trim_open.argtypes = (c_char_p, c_int32)
    found.trim_open.restype = c_void_p
    found.trim_close.argtypes = (c_void_p,)
    found.trim_close.restype = None
    found.trim_isa.argtypes = (c_void_p,)
    found.trim_isa.restype = c_char_p
    pointers = (POINTER(Model), POINTER(Cache), POINTER(Batch))
    found.trim_step.argtypes = (c_void_p, *pointers, c_void_p)
    found.trim_step.restype = None
    found.trim_project.argtypes = (c_void_p, POINTER(Matrix), c_void_p, c_int32, c_void_p)
    found.trim_project.restype = None
    head = (POINTER(Matrix), POINTER(Preview))
    found.trim_best.argtypes = (c_void_p, *head, c_void_p, c_int32, c_void_p)
    found.trim_best.restype = None
    return found


class NativeEngine:
    """Threads and scratch memory of the kernels. Used by one thread at a time."""

    def __init__(self, threads: int, isa: str | None = None) -> None:
        """Raises `RuntimeError` if the kernels are missing or know no such instruction set."""
        found = library()
        if found is None:
            raise RuntimeError("the native kernels are not built; reinstall with a C++ compiler")
        wanted = isa or os.environ.get("TRIMTAB_ISA") or ""
        self._library = found
        self._handle = found.trim_open(wanted.encode(), threads)
        if not self._handle:
            raise RuntimeError(f"this processor has no '{wanted}', or there are no such kernels")

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return str(self._library.trim_isa(self._handle).decode())

    def step(self, model: Model, cache: Cache, batch: Batch, hidden: Tensor) -> None:
        """Writes `hidden`, fp32 `[rows, hidden]`, and the cache."""
        self._library.trim_step(self._handle, model, cache, batch, hidden.data_ptr())

    def project(self, matrix: Matrix, x: Tensor, y: Tensor) -> None:
        """`y[rows, outputs] = matrix(x)`, both fp32 and contiguous."""
        self._library.trim_project(self._handle, matrix, x.data_ptr(), len(x), y.data_ptr())

    def best(self, matrix: Matrix, preview: Preview | None, x: Tensor) -> list[int]:
        """The highest output of each row of `matrix(x)`, `x` fp32 and contiguous.

        It is -1 where that is no finite number.
        """
        found = (c_int32 * len(x))()
        self._library.trim_best(self._handle, matrix, preview, x.data_ptr(), len(x), found)
        return list(found)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.trim_close(self._handle)
