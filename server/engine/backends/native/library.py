"""The compiled kernels, if they were built: the functions of `csrc/include/native.h`."""

import ctypes
import importlib.machinery
import logging
import os
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_int32, c_void_p
from functools import cache
from pathlib import Path

from torch import Tensor

from server.engine.backends.native.structures import (
    STRUCTURES,
    BatchStruct,
    CacheStruct,
    DrawStruct,
    HeadScreenStruct,
    MatrixStruct,
    ModelStruct,
    address_of,
)
from server.engine.draw import Draw

log = logging.getLogger(__name__)

_ADDRESS = c_void_p
_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "trim_open": (_ADDRESS, (c_char_p, c_int32)),
    "trim_close": (None, (_ADDRESS,)),
    "trim_isa": (c_char_p, (_ADDRESS,)),
    "trim_step": (
        None,
        (_ADDRESS, POINTER(ModelStruct), POINTER(CacheStruct), POINTER(BatchStruct), _ADDRESS),
    ),
    "trim_project": (None, (_ADDRESS, POINTER(MatrixStruct), _ADDRESS, c_int32, _ADDRESS)),
    "trim_draw": (
        None,
        (
            _ADDRESS,
            POINTER(MatrixStruct),
            POINTER(HeadScreenStruct),
            _ADDRESS,
            POINTER(DrawStruct),
            c_int32,
            _ADDRESS,
        ),
    ),
}
"""Result and parameters of each function of the C interface, by its name."""


class LibraryMismatchError(Exception):
    """A library of kernels has other structures or functions than this code."""


@cache
def load_library() -> ctypes.CDLL | None:
    """Return the kernels, or None where they are missing or do not fit; the latter with a warning.

    `TRIMTAB_NATIVE` may name another build of them, or hide them with `0`.
    """
    given = os.environ.get("TRIMTAB_NATIVE")
    folder = Path(__file__).parent
    # Of any version of Python first: a file of one version may be left from an earlier build.
    suffixes = sorted(importlib.machinery.EXTENSION_SUFFIXES, key=lambda one: "abi3" not in one)
    names = [f"_native{suffix}" for suffix in suffixes]
    for path in [Path(given)] if given else [folder / name for name in names]:
        if path.exists():
            try:
                return open_library(path)
            except (OSError, LibraryMismatchError) as error:
                log.warning("cannot load the native kernels: %s", error)
    return None


def is_available() -> bool:
    """Return whether the kernels can be used (see `load_library`)."""
    return load_library() is not None


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library of kernels and declare its functions.

    Raises `OSError` if it cannot be loaded, and `LibraryMismatchError` if it was built from another
    version of the code.
    """
    opened = ctypes.CDLL(str(path))
    try:
        _check_structures(opened)
        for name, (result, parameters) in _FUNCTIONS.items():
            function = getattr(opened, name)
            function.restype, function.argtypes = result, parameters
    except (AttributeError, LibraryMismatchError) as error:
        raise LibraryMismatchError(
            f"{path.name} was built from another version of the code ({error}); "
            "install the package again"
        ) from error
    return opened


def _check_structures(opened: ctypes.CDLL) -> None:
    """Raise `LibraryMismatchError` unless all structures have the sizes that the kernels expect."""
    expected = {struct.__name__: ctypes.sizeof(struct) for struct in STRUCTURES}
    sizes = (c_int32 * len(expected))()
    count = opened.trim_struct_sizes(sizes, len(sizes))
    if count != len(expected):
        raise LibraryMismatchError(f"{count} structures in place of {len(expected)}")
    for (name, size), found in zip(expected.items(), sizes, strict=True):
        if size != found:
            raise LibraryMismatchError(f"{name} has {found} bytes in place of {size}")


class NativeEngine:
    """Threads and scratch memory of the kernels. Used by one thread at a time."""

    def __init__(self, threads: int, isa: str | None = None) -> None:
        """Open the kernels of an instruction set with `threads` threads.

        `isa` defaults to `TRIMTAB_ISA`, and that to the fastest of this processor. Raises
        `RuntimeError` if the kernels are missing or have no such instruction set.
        """
        library = load_library()
        if library is None:
            raise RuntimeError("the native kernels are not built; reinstall with a C++ compiler")
        name = isa or os.environ.get("TRIMTAB_ISA") or ""
        self._library = library
        self._handle = library.trim_open(name.encode(), threads)
        if not self._handle:
            raise RuntimeError(f"this processor has no '{name}', or there are no such kernels")

    @property
    def isa(self) -> str:
        """Return the name of the instruction set in use."""
        return str(self._library.trim_isa(self._handle).decode())

    def step(
        self, model: ModelStruct, cache: CacheStruct, batch: BatchStruct, hidden: Tensor
    ) -> None:
        """Run one step: write `hidden`, fp32 `[rows, hidden]`, and the keys and values of rows."""
        self._library.trim_step(self._handle, model, cache, batch, hidden.data_ptr())

    def project(self, matrix: MatrixStruct, x: Tensor, y: Tensor) -> None:
        """Compute `y = matrix(x)`, fp32 `[rows, outputs]` of `[rows, inputs]`, both contiguous."""
        self._library.trim_project(self._handle, matrix, x.data_ptr(), len(x), y.data_ptr())

    def draw(
        self,
        matrix: MatrixStruct,
        screen: HeadScreenStruct | None,
        x: Tensor,
        draws: Sequence[Draw],
    ) -> list[int]:
        """Return the output that each draw takes of its row of `matrix(x)`.

        `x` is fp32 `[rows, inputs]` and contiguous. The result is -1 where the highest value is not
        finite. A head screen makes it faster for few rows and does not change it.
        """
        structs, outputs = draw_structs(draws, matrix), (c_int32 * len(draws))()
        self._library.trim_draw(
            self._handle, matrix, screen, x.data_ptr(), structs, len(draws), outputs
        )
        return list(outputs)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.trim_close(self._handle)


def draw_structs(draws: Sequence[Draw], matrix: MatrixStruct) -> ctypes.Array[DrawStruct]:
    """Return an array of the structures of draws from a matrix."""
    return (DrawStruct * len(draws))(
        *(
            DrawStruct(
                draw.temperature,
                draw.top_p,
                draw.min_p,
                draw.top_k if draw.top_k < matrix.outputs else 0,
                draw.key,
                address_of(draw.allowed),
            )
            for draw in draws
        )
    )
