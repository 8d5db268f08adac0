"""Packed bases in the cache folder: written once, and mapped by every later start."""

import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from pruners.realization.order import Order
from server.engine.loading.checkpoint.identity import source_identity
from server.engine.loading.model_cache import locked, sync
from server.engine.loading.packed_file import (
    Json,
    PackedBase,
    PackedFileError,
    map_packed,
    read_identity,
    write_packed,
)
from server.engine.loading.source import cache_folder
from server.engine.precision import Precision

log = logging.getLogger(__name__)

SUFFIX = ".packed"
_WANTED = 8 + len(SUFFIX)  # characters of a name that other precisions and orders do not share
_PART = ".part"
_SPARE = 64 << 20  # bytes that stay free on the disk
_WORTH_IT = 16 << 20  # bytes; less is packed as quickly as it is found


@dataclass(frozen=True, slots=True)
class PackedKey:
    """Which packed base is meant, and the file that it is kept in.

    `source` names the model, and its files with their sizes and times. `wanted` is the precision
    that was asked for, and the order of units.
    """

    path: Path
    source: Json
    wanted: Json

    @property
    def identity(self) -> Json:
        """Return everything that must be the same, as JSON."""
        return {"source": self.source, "wanted": self.wanted}


def packed_key(source: Path, precision: Precision, order: Order | None) -> PackedKey:
    """Return the key of a model folder or a GGUF file. Raises `UnsupportedModelError`.

    Files with other sizes or times, or other versions of them, have the same path.
    """
    files = source_identity(source)
    wanted = {"precision": precision, "order": None if order is None else order.digest()}
    name = f"{source.stem}-{_hash(files[0])[:12]}-{_hash(wanted)[:8]}{SUFFIX}"
    return PackedKey(cache_folder() / "packed" / name, files, wanted)


def find_packed(key: PackedKey) -> PackedBase | None:
    """Map the file of a key if it is there and can be used."""
    try:
        return _map(key)
    except (OSError, PackedFileError):
        return None


def _map(key: PackedKey) -> PackedBase:
    base = map_packed(key.path, key.identity)
    with suppress(OSError):
        os.utime(key.path)  # when it was last used
    return base


def packed_base(key: PackedKey, build: Callable[[], PackedBase]) -> PackedBase:
    """Return the base that is kept under a key; `build` makes it if need be.

    Another process that packs is waited for. What cannot be kept, since the disk is full or the
    folder is not writable, is served from memory, and one line says so.
    """
    folder = key.path.parent
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder / ".lock", f"packs a model in {folder}"))
        except OSError as error:
            log.warning("packed weights are not kept in %s: %s", folder, _reason(error))
            return build()
        try:
            return _map(key)
        except FileNotFoundError:
            pass
        except (OSError, PackedFileError) as error:
            log.warning("packing again: %s: %s", key.path, _reason(error))
        return _build(key, build)


def _build(key: PackedKey, build: Callable[[], PackedBase]) -> PackedBase:
    for part in key.path.parent.glob(f".*{_PART}"):
        part.unlink()  # the process that wrote it has ended, or it would hold the lock
    base = build()
    if sum(tensor.nbytes for tensor in base.weights.tensors()) < _WORTH_IT:
        return base
    try:
        _keep(key, base)
        return map_packed(key.path, key.identity)
    except (OSError, PackedFileError) as error:
        log.warning("packed weights are not kept: %s: %s", key.path, _reason(error))
        return base


def _reason(error: OSError | PackedFileError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _keep(key: PackedKey, base: PackedBase) -> None:
    """Write a file beside its place and rename it; remove those of the model that are out of date.

    Raises `OSError`.
    """
    path, started = key.path, time.monotonic()
    size = sum(tensor.nbytes for tensor in base.weights.tensors())
    free = shutil.disk_usage(path.parent).free
    if free < size + _SPARE:
        raise OSError(f"{size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=_PART, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write_packed(file, key.identity, base)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
        sync(path.parent)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
    seconds = time.monotonic() - started
    log.info("kept %.0f MB of packed weights in %s in %.1f s", size / 1e6, path, seconds)
    for other in path.parent.glob(f"{glob.escape(path.name[:-_WANTED])}*{SUFFIX}"):
        if other != path and not _is_current(other, key):
            with suppress(OSError):
                other.unlink()


def _is_current(path: Path, key: PackedKey) -> bool:
    try:
        return bool(read_identity(path)["source"] == key.source)
    except (OSError, PackedFileError, KeyError):
        return False


def _hash(value: Json) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
