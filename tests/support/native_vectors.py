"""Calls of the native kernels in files, for programs without Python (`check_vectors.cpp`).

A file holds the memory of a call as one image, which a program loads anywhere:

    "TRIMCALL", the function (0 step, 1 project, 2 draw), the number of words of the image, of
    relocations, and of outputs; the image, whose first words are the arguments of the call; the
    relocations: where in the image there is a pointer, as an offset in the image; and for each
    output its offset in the image, how many numbers it has, how many are a vector, their type (0
    fp32, 1 int32, 2 bf16, 3 int8), the largest relative error of a vector, and the numbers

All words have 64 bits. The outputs are all tensors that the call changes.
"""

import ctypes
import gc
import struct
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from server.engine.backends.native.library import NativeEngine, draw_structs
from server.engine.backends.native.structures import (
    BatchStruct,
    CacheStruct,
    HeadScreenStruct,
    MatrixStruct,
    ModelStruct,
)
from server.engine.draw import Draw

STEP, PROJECT, DRAW = range(3)
_NUMBERS = {torch.float32: 0, torch.int32: 1, torch.bfloat16: 2, torch.int8: 3}
_ALIGNMENT = 64
_CData = ctypes.c_int32.__mro__[2]  # the base of all types of ctypes
_LARGEST = 1e6  # memory with larger numbers was never written, and would hide errors


class Memory:
    """What this process has made since `gc.freeze()`, by address: tensors, arrays, structures."""

    def __init__(self) -> None:
        found: dict[int, tuple[int, object]] = {}
        for one in gc.get_objects():
            place = _place(one)
            if place is None:
                continue
            start, size, exact = place
            if exact or start not in found:
                found[start] = (size, one)
        self._starts = sorted(found)
        self._owners = [found[start] for start in self._starts]

    def owner(self, address: int) -> tuple[int, int, object]:
        """Return start and size in bytes of the memory at an address, and whose it is."""
        index = bisect_right(self._starts, address) - 1
        start, (size, owner) = self._starts[index], self._owners[index]
        assert start <= address < start + size, "a pointer to memory that nothing owns"
        return start, size, owner


def _place(one: object) -> tuple[int, int, bool] | None:
    """Return address and size in bytes of what an object owns, and whether it is all of it."""
    kind = type(one)
    if issubclass(kind, Tensor):
        if one.device.type != "cpu" or one.layout != torch.strided or not one.numel():
            return None
        storage = one.untyped_storage()
        whole = one.is_contiguous() and one.numel() * one.element_size() == storage.nbytes()
        return storage.data_ptr(), storage.nbytes(), whole
    if issubclass(kind, array):
        address, count = one.buffer_info()
        return (address, count * one.itemsize, True) if count else None
    if issubclass(kind, _CData) and one._b_base_ is None:
        return ctypes.addressof(one), ctypes.sizeof(one), True
    return None


def _pointers(kind: type, at: int = 0) -> Iterator[int]:
    """Yield the offsets of all pointers in a type of ctypes."""
    if issubclass(kind, ctypes.Structure):
        for name, field, *_ in kind._fields_:
            yield from _pointers(field, at + getattr(kind, name).offset)
    elif issubclass(kind, ctypes.Array):
        for index in range(kind._length_):
            yield from _pointers(kind._type_, at + index * ctypes.sizeof(kind._type_))
    elif issubclass(kind, (ctypes.c_void_p, ctypes._Pointer)):
        yield at


def _pointers_in(owner: object) -> Iterator[int]:
    """Yield the offsets of all pointers in the memory of an object."""
    if isinstance(owner, array):
        yield from range(0, 8 * len(owner) if owner.typecode == "Q" else 0, 8)
    elif isinstance(owner, _CData):
        yield from _pointers(type(owner))


class Image:
    """A copy of the memory that is reachable from the arguments of a call.

    `tensors` are those in it, with their offsets. `relocations` are the offsets of pointers.
    """

    def __init__(self, arguments: list[object]) -> None:
        """`arguments` are integers, and tensors or structures that are pointed at; None is null."""
        self._memory = Memory()
        self._placed: dict[int, int] = {}
        self.bytes = bytearray(8 * _ALIGNMENT)
        self.relocations: list[int] = []
        self.tensors: list[tuple[int, Tensor]] = []
        for index, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                self._point(8 * index, argument.data_ptr())
            elif isinstance(argument, _CData):
                self._point(8 * index, ctypes.addressof(argument))
            else:
                self.bytes[8 * index : 8 * index + 8] = struct.pack("<Q", argument or 0)

    def _point(self, at: int, address: int) -> None:
        """Write a pointer to what is at an address of this process, which is copied if need be."""
        if not address:
            return
        start, size, owner = self._memory.owner(address)
        if start not in self._placed:
            self._copy(start, size, owner)
        self.bytes[at : at + 8] = struct.pack("<Q", self._placed[start] + address - start)
        self.relocations.append(at)

    def _copy(self, start: int, size: int, owner: object) -> None:
        self._placed[start] = at = len(self.bytes)
        self.bytes += ctypes.string_at(start, size) + bytes(-size % _ALIGNMENT)
        if isinstance(owner, Tensor):
            self.tensors.append((at, owner))
        for offset in _pointers_in(owner):
            self._point(at + offset, *struct.unpack_from("<Q", self.bytes, at + offset))


class RecordingEngine(NativeEngine):
    """Portable kernels that write each call, and what it changes, into a file of a folder.

    `tolerance` is that of steps: rounding to int8 between the products makes small errors larger.
    """

    def __init__(self, folder: Path, name: str, tolerance: float) -> None:
        super().__init__(2, "portable")
        self._folder, self._name, self._tolerance = folder, name, tolerance
        self._count = 0

    def step(
        self, model: ModelStruct, cache: CacheStruct, batch: BatchStruct, hidden: Tensor
    ) -> None:
        """Record one step. See `NativeEngine`."""
        hidden.zero_()
        image = Image([model, cache, batch, hidden])
        before = [tensor.clone() for _, tensor in image.tensors]
        super().step(model, cache, batch, hidden)
        self._write(STEP, image, before, self._tolerance)

    def project(self, matrix: MatrixStruct, x: Tensor, y: Tensor) -> None:
        """Record a product. See `NativeEngine`."""
        y.zero_()
        image = Image([matrix, x, len(x), y])
        before = [tensor.clone() for _, tensor in image.tensors]
        super().project(matrix, x, y)
        self._write(PROJECT, image, before, 1e-5)

    def draw(
        self,
        matrix: MatrixStruct,
        screen: HeadScreenStruct | None,
        x: Tensor,
        draws: Sequence[Draw],
    ) -> list[int]:
        """Record draws. See `NativeEngine`."""
        outputs = torch.full((len(x),), -2, dtype=torch.int32)
        structs = draw_structs(draws, matrix)
        image = Image([matrix, screen, x, structs, len(x), outputs])
        before = [tensor.clone() for _, tensor in image.tensors]
        found = super().draw(matrix, screen, x, draws)
        outputs.copy_(torch.tensor(found))
        self._write(DRAW, image, before, 0.0)
        return found

    def _write(self, function: int, image: Image, before: list[Tensor], tolerance: float) -> None:
        """Write a call. `before` is what the tensors of its image were."""
        outputs = [
            (at, tensor)
            for (at, tensor), old in zip(image.tensors, before, strict=True)
            if not torch.equal(tensor.nan_to_num(), old.nan_to_num())
        ]
        path = self._folder / f"{self._name}-{self._count}.call"
        self._count += 1
        header = (function, len(image.bytes) // 8, len(image.relocations), len(outputs))
        with path.open("wb") as file:
            file.write(b"TRIMCALL" + struct.pack("<4Q", *header) + image.bytes)
            file.write(struct.pack(f"<{len(image.relocations)}Q", *image.relocations))
            for at, tensor in outputs:
                assert tensor.is_contiguous()
                assert tensor.float().nan_to_num(0, 0, 0).abs().max() < _LARGEST
                sizes = at, tensor.numel(), tensor.shape[-1], _NUMBERS[tensor.dtype]
                file.write(struct.pack("<4Qd", *sizes, tolerance))
                file.write(tensor.flatten().view(torch.uint8).numpy().tobytes())
