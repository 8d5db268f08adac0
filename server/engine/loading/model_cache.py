"""Folders that are built once and kept: whole or not there, one builder at a time.

A manifest is written last. It lists every file with its size, time and hash. A start compares sizes
and times, and reads a file only where its time has changed.
"""

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

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

MANIFEST = "trimtab.json"
_LOCK = ".lock"
_SCHEMA = 1
_STAGING = re.compile(r"\..+-[a-z0-9_]{8}")


def cached(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`; if it is missing or damaged, `build` fills a new one in its place first.

    `build` takes an empty folder to work in and leaves its result there in `model`. Another process
    that builds a folder beside this one is waited for. Raises `OSError`.
    """
    if _fault(folder) is not None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder.parent / _LOCK, f"builds a model in {folder.parent}"):
            fault = _fault(folder)
            if fault is not None:
                _build(folder, fault, build)
    return folder


def remove_stale(parent: Path) -> None:
    """Remove the staging folders of builds that were killed, unless somebody builds now."""
    stale = [path for path in parent.glob(".*") if _STAGING.fullmatch(path.name) and path.is_dir()]
    if not stale:
        return
    with suppress(OSError), FileLock(parent / _LOCK, timeout=0):  # fails while a builder lives
        for folder in stale:
            shutil.rmtree(folder)
            log.warning("removed %s, left by a build that was killed", folder)


def _build(folder: Path, fault: str, build: Callable[[Path], None]) -> None:
    if folder.exists():
        log.warning("building %s again: %s", folder, fault)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        staging = Path(temporary)
        build(staging)
        _seal(staging / "model")
        if folder.exists():
            os.replace(folder, staging / "old")
        os.replace(staging / "model", folder)
        sync(folder.parent)


@contextmanager
def locked(lock: Path, doing: str) -> Iterator[None]:
    """Let one process at a time do something. Its lock ends with the process.

    `doing` says in the log what another process does that is waited for, such as `downloads x`.
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process, which %s", doing)
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _seal(folder: Path) -> None:
    """Write everything through to the disk, then the manifest."""
    files = {}
    for path in sorted(path for path in folder.iterdir() if path.name != MANIFEST):
        sync(path)
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
    sync(part)
    os.replace(part, folder / MANIFEST)
    sync(folder)


def _fault(folder: Path) -> str | None:
    """Say what is wrong with a folder, or return None if it is whole."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        schema, files = manifest["schema"], dict(manifest["files"])
        retimed = []
        for name, entry in files.items():
            stat = (folder / name).stat()
            if stat.st_size != entry["size"]:
                return f"{name} has {stat.st_size} bytes, not {entry['size']}"
            if int(stat.st_mtime) != entry["seconds"]:
                retimed.append((name, entry, int(stat.st_mtime)))
        for name, entry, seconds in retimed:
            if _sha256(folder / name) != entry["sha256"]:
                return f"{name} has changed"
            entry["seconds"] = seconds
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing"
    except (KeyError, TypeError, ValueError):
        return f"{MANIFEST} is damaged"
    if schema != _SCHEMA:
        return "another version built it"
    if retimed:
        with suppress(OSError):  # so that the next start need not read it again
            _write(folder, {"schema": schema, "files": files})
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Write a file or a folder through to the disk."""
    if os.name != "posix":  # Windows cannot open folders, nor flush what is open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
