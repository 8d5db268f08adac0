"""Folders that are built once and kept: whole or not there, one builder at a time.

A manifest is written last. It lists every file with its size, time and hash. A start compares sizes
and times, and reads a file only where its time has changed.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

MANIFEST = "trimtab.json"
_SCHEMA = 1
_STAGING = re.compile(r"\..+-[a-z0-9_]{8}")


def cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`; if it is missing or damaged, `build` fills a new one in its place first.

    `build` takes an empty folder to work in and leaves its result there in `model`. Another process
    that builds a folder beside this one is waited for. Raises `OSError`.
    """
    if _fault(folder) is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            fault = _fault(folder)
            if fault is not None:
                _build(folder, fault, build)
    return folder


def adopt(folder: Path) -> bool:
    """Say whether a folder from before there were manifests is whole, and write its manifest.

    One that cannot be written to, as in an image, is left as it is.
    """
    if (folder / MANIFEST).exists() or not _weights_end_where_they_say(folder):
        return False
    if os.access(folder, os.W_OK):
        with suppress(OSError):
            _seal(folder)
    return True


def remove_stale(parent: Path) -> None:
    """Remove the staging folders of builds that were killed, unless somebody builds now."""
    stale = [path for path in parent.glob(".*") if _STAGING.fullmatch(path.name) and path.is_dir()]
    if not stale:
        return
    with suppress(OSError), _lock_file(parent) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a builder lives
        for found in stale:
            shutil.rmtree(found)
            log.warning("removed %s, left by a build that was killed", found)


def _build(folder: Path, fault: str, build: Callable[[Path], None]) -> None:
    if folder.exists():
        log.warning("building %s again: %s", folder, fault)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as made:
        staging = Path(made)
        build(staging)
        _seal(staging / "model")
        if folder.exists():
            os.replace(folder, staging / "old")
        os.replace(staging / "model", folder)
        _sync(folder.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with _lock_file(folder.parent) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process, which builds a model in %s", folder.parent)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock_file(parent: Path) -> Iterator[int]:
    """Open the file that one builder at a time locks; closing it gives the lock back."""
    lock = os.open(parent / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield lock
    finally:
        os.close(lock)


def _seal(folder: Path) -> None:
    """Write everything through to the disk, then the manifest."""
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        _sync(path)
        stat = path.stat()
        files[path.name] = {
            "size": stat.st_size,
            "seconds": int(stat.st_mtime),
            "sha256": _sha256(path),
        }
    _write(folder, {"schema": _SCHEMA, "files": files})


def _write(folder: Path, manifest: dict[str, object]) -> None:
    part = folder / f".{MANIFEST}"
    part.write_text(json.dumps(manifest, indent=1) + "\n")
    _sync(part)
    os.replace(part, folder / MANIFEST)
    _sync(folder)


def _fault(folder: Path) -> str | None:
    """Say what is wrong with a folder, or return None if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        schema, files = manifest["schema"], dict(manifest["files"])
        touched = []
        for name, kept in files.items():
            stat = (folder / name).stat()
            if stat.st_size != kept["size"]:
                return f"{name} has {stat.st_size} bytes, not {kept['size']}"
            if int(stat.st_mtime) != kept["seconds"]:
                touched.append((name, kept, int(stat.st_mtime)))
        for name, kept, seconds in touched:
            if _sha256(folder / name) != kept["sha256"]:
                return f"{name} has changed"
            kept["seconds"] = seconds
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (KeyError, TypeError, ValueError):
        return f"{MANIFEST} is damaged"
    if schema != _SCHEMA:
        return "another version built it"
    if touched:
        with suppress(OSError):  # so that the next start need not read it again
            _write(folder, {"schema": schema, "files": files})
    return None


def _weights_end_where_they_say(folder: Path) -> bool:
    """Whether the weights' file is as long as its header says, and the rest is there."""
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 1 << 26)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"]
        complete = weights.stat().st_size == 8 + size + max(ends)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return complete and all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
