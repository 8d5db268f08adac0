"""One file with a packed base: a header that says what it is, then tensors that are mapped.

| bytes | content |
|---|---|
| 8 | `TRIMPACK` |
| 8 | length of the header, little-endian |
| 32 | SHA-256 of the header |
| length | the header, JSON: format, layout, identity, size of the file, tensors, record |
| rest | tensors, each from a multiple of 64 bytes on |

The record is a tree of dataclasses, each with its name. A reader with other classes or fields finds
that the file is not for it.
"""

import hashlib
import json
import mmap
import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from pruners.architecture import Shape
from server.engine.backends.native.head_screening import HeadScreen
from server.engine.backends.native.packed_weights import PackedLayer, PackedWeights
from server.engine.backends.native.packing import LAYOUT, PackedMatrix
from server.engine.backends.pytorch.rope import RopeFrequencies, rope_tables

FORMAT = 1
"""Raised when the form of the file changes."""

_MAGIC = b"TRIMPACK"
_PREAMBLE = len(_MAGIC) + 8 + 32
_MAX_HEADER = 64 << 20
_ALIGNMENT = 64
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.uint8, torch.int8, torch.int32, torch.float16, torch.float32)
}

Json = Any
"""What JSON holds."""


class PackedFileError(Exception):
    """A file is damaged, or for another source or version. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What is known of a base besides its weights.

    `longest` is the number of tokens that its rotary tables are right for, `configured` the one
    that its configuration allows.
    `eos_token_ids` end an answer. `sampling_defaults` are the model's own sampling parameters.
    """

    fingerprint: str
    longest: int
    configured: int
    eos_token_ids: list[int]
    sampling_defaults: dict[str, float]


@dataclass(frozen=True, slots=True)
class PackedBase:
    """What a start needs of a base. Its weights have the rotary tables of no context yet."""

    weights: PackedWeights
    facts: BaseFacts

    def for_context(self, context: int) -> PackedWeights:
        """Return the weights with the tables for a context, in tokens."""
        tables = rope_tables(self.weights.frequencies, context, torch.float32)
        return replace(self.weights, rope=tables, context=context)


_CLASSES = {
    one.__name__: one
    for one in (
        BaseFacts,
        PackedBase,
        PackedWeights,
        PackedLayer,
        PackedMatrix,
        HeadScreen,
        RopeFrequencies,
        Shape,
    )
}


def header_of(identity: Json, base: PackedBase) -> tuple[bytes, list[tuple[int, Tensor]]]:
    """Return the bytes in front of the tensors, and each tensor with its place in the file."""
    tensors: dict[int, tuple[int, Tensor]] = {}
    record = _encode(base, tensors)
    listed = [tensor for _, tensor in sorted(tensors.values(), key=lambda pair: pair[0])]
    places, end = [], 0
    for tensor in listed:
        places.append(end)
        end = -(-(end + tensor.nbytes) // _ALIGNMENT) * _ALIGNMENT
    header = {
        "format": FORMAT,
        "layout": LAYOUT,
        "identity": identity,
        "data": end,
        "tensors": [
            [place, str(one.dtype).removeprefix("torch."), list(one.shape)]
            for place, one in zip(places, listed, strict=True)
        ],
        "record": record,
    }
    text = json.dumps(header).encode()
    text += b" " * (-(_PREAMBLE + len(text)) % _ALIGNMENT)
    digest = hashlib.sha256(text).digest()
    front = _MAGIC + len(text).to_bytes(8, "little") + digest + text
    return front, [(len(front) + place, one) for place, one in zip(places, listed, strict=True)]


def write_packed(file: BinaryIO, identity: Json, base: PackedBase) -> None:
    """Write a base. `identity` says what it was packed from, in JSON. Raises `OSError`."""
    front, tensors = header_of(identity, base)
    file.write(front)
    end = len(front)
    for place, tensor in tensors:
        file.write(bytes(place - end))
        file.write(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
        end = place + tensor.nbytes
    file.write(bytes(-end % _ALIGNMENT))


def read_identity(path: Path) -> Json:
    """Return what a file was packed from. Raises `PackedFileError` or `OSError`."""
    with path.open("rb") as file:
        header, _ = _read_header(file)
    return header["identity"]


def map_packed(path: Path, identity: Json) -> PackedBase:
    """Map a base into memory; nothing is copied, and nothing may be written to its tensors.

    Raises `PackedFileError` unless the file is whole and was packed from `identity`, and `OSError`.
    """
    with path.open("rb") as file:
        header, start = _read_header(file)
        if header["identity"] != identity:
            raise PackedFileError("it was packed from something else")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")
        content = torch.frombuffer(mapped, dtype=torch.uint8)
    try:
        tensors = [_tensor(content, start, *about) for about in header["tensors"]]
        base = _decode(header["record"], tensors)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
        raise PackedFileError(f"another version wrote it ({error})") from error
    if not isinstance(base, PackedBase):
        raise PackedFileError("another version wrote it")
    return base


def _read_header(file: BinaryIO) -> tuple[dict[str, Json], int]:
    """Return the header and where the tensors begin."""
    front = file.read(_PREAMBLE)
    if len(front) < _PREAMBLE or not front.startswith(_MAGIC):
        raise PackedFileError("it is no file of packed weights")
    length = int.from_bytes(front[8:16], "little")
    text = file.read(min(length, _MAX_HEADER))
    if len(text) < length or hashlib.sha256(text).digest() != front[16:]:
        raise PackedFileError("its header is damaged")
    header: dict[str, Json] = json.loads(text)
    if (header["format"], header["layout"]) != (FORMAT, LAYOUT):
        raise PackedFileError("another version wrote it")
    start = _PREAMBLE + length
    if file.seek(0, 2) != start + header["data"]:
        raise PackedFileError("it is not as long as its header says")
    return header, start


def _tensor(content: Tensor, start: int, place: int, name: str, shape: list[int]) -> Tensor:
    dtype = _DTYPES[name]
    count = torch.Size(shape).numel()
    part = content[start + place : start + place + count * dtype.itemsize]
    return part.view(dtype).view(shape)


def _encode(value: object, tensors: dict[int, tuple[int, Tensor]]) -> Json:
    """Return a value as JSON. Tensors are numbered, those with the same memory once."""
    if isinstance(value, Tensor):
        number, _ = tensors.setdefault(value.data_ptr(), (len(tensors), value))
        return {"tensor": number}
    if is_dataclass(value):
        named = {one.name: _encode(getattr(value, one.name), tensors) for one in fields(value)}
        return {"class": type(value).__name__, "fields": named}
    if isinstance(value, dict):
        return {"pairs": [[key, _encode(one, tensors)] for key, one in value.items()]}
    if isinstance(value, list):
        return [_encode(one, tensors) for one in value]
    if isinstance(value, torch.dtype | torch.device):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    assert value is None or isinstance(value, str | int | float)
    return value


def _decode(value: Json, tensors: list[Tensor]) -> Any:  # noqa: ANN401
    """Return what `_encode` was given."""
    if isinstance(value, list):
        return [_decode(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "pairs" in value:
        return {key: _decode(one, tensors) for key, one in value["pairs"]}
    if "dtype" in value:
        return getattr(torch, value["dtype"])
    if "device" in value:
        return torch.device(value["device"])
    kind = _CLASSES[value["class"]]
    named = value["fields"]
    if named.keys() != {one.name for one in fields(kind)}:
        raise PackedFileError("another version wrote it")
    return kind(**{name: _decode(one, tensors) for name, one in named.items()})
