"""Readers as an artefact stores them: `readers.json`, and their maps in 4 bits beside it."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pruners.architecture import Shape
from pruners.data.readers import ReadError, read_json
from pruners.reading.maps import KVMaps, from_tensors
from pruners.reading.reader import PromptReader
from pruners.support.files import write_json
from pruners.support.validation import EXACT, validate

READERS, MAPS = "readers.json", "readers.safetensors"
_SCHEMA = 2


@dataclass(frozen=True, slots=True)
class StoredReader:
    """A `PromptReader` in `readers.json`; one with `attended` is for evaluation and not stored."""

    name: str
    depth: int
    last: int
    turn: int
    numbers: bool
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class _ReadersFile:
    schema: int
    fingerprint: str
    readers: tuple[StoredReader, ...]
    __pydantic_config__ = EXACT


def check_readers(
    readers: Mapping[str, PromptReader], maps: Mapping[int, KVMaps], shape: Shape
) -> None:
    """Raise `ValueError` for readers or maps that do not fit the model or each other."""
    for name, reader in readers.items():
        if name != reader.name:
            raise ValueError(f"reader '{reader.name}' is stored as '{name}'")
        reader.check(shape)
        if reader.attended:
            raise ValueError(f"reader '{name}' has `attended`, which is for evaluation only")
        if reader.depth not in maps:
            raise ValueError(f"reader '{name}' has no maps of depth {reader.depth}")
    rows = 2 * shape.kv_groups * shape.head_dim
    for depth, one in maps.items():
        if depth not in {reader.depth for reader in readers.values()}:
            raise ValueError(f"the maps of depth {depth} are of no reader")
        expected = (shape.layers - depth, rows, shape.hidden + 1)
        if tuple(one.weight.shape) != expected:
            found = tuple(one.weight.shape)
            raise ValueError(f"the maps of depth {depth} are {found}, not {expected}")
        if not bool(one.weight.isfinite().all()):
            raise ValueError(f"the maps of depth {depth} are not finite")


def save_readers(
    folder: Path, fingerprint: str, readers: Mapping[str, PromptReader], maps: Mapping[int, KVMaps]
) -> None:
    """Write both files into a folder, bound to the model of `fingerprint`."""
    stored = [
        {name: getattr(one, name) for name in ("name", "depth", "last", "turn", "numbers")}
        for one in readers.values()
    ]
    tensors: dict[str, Tensor] = {}
    for depth in sorted(maps):
        tensors |= maps[depth].to_tensors()
    save_file(tensors, folder / MAPS, {"fingerprint": fingerprint})
    write_json(folder / READERS, {"schema": _SCHEMA, "fingerprint": fingerprint, "readers": stored})


def load_readers(
    folder: Path, fingerprint: str, shape: Shape
) -> tuple[dict[str, PromptReader], dict[int, KVMaps]]:
    """Return the readers of an artefact by name and their maps by depth; none without the files.

    Raises `ValueError` for files of another model, of another version, and for damaged ones.
    """
    if not (folder / READERS).exists() and not (folder / MAPS).exists():
        return {}, {}
    try:
        file = validate(_ReadersFile, read_json(folder / READERS))
    except FileNotFoundError as error:
        raise ValueError(f"{READERS} is missing") from error
    except (ReadError, ValueError) as error:
        raise ValueError(f"{READERS}: {error}") from error
    if file.schema != _SCHEMA:
        raise ValueError(f"{READERS} has schema {file.schema}, this version reads {_SCHEMA}")
    if file.fingerprint != fingerprint:
        raise ValueError(f"{READERS} belongs to another model")
    readers: dict[str, PromptReader] = {}
    for one in file.readers:
        if one.name in readers:
            raise ValueError(f"two readers are named '{one.name}'")
        readers[one.name] = PromptReader(one.name, one.depth, one.last, one.turn, one.numbers)
    maps = _load_maps(folder / MAPS, fingerprint)
    check_readers(readers, maps, shape)
    return readers, maps


def readers_digest(readers: Mapping[str, PromptReader], maps: Mapping[int, KVMaps]) -> str:
    """Return a hash of what the readers compute, hexadecimal; equal before and after a file."""
    digest = hashlib.sha256(repr(sorted(readers.values(), key=lambda one: one.name)).encode())
    for depth in sorted(maps):
        for name, tensor in maps[depth].to_tensors().items():
            digest.update(name.encode())
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _load_maps(path: Path, fingerprint: str) -> dict[int, KVMaps]:
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != {"fingerprint": fingerprint}:
                raise ValueError(f"{path.name} belongs to another model")
            return from_tensors({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name}: {error}") from error
