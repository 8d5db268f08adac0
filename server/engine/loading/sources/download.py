"""Download a file so that it is whole or not there, and a killed download goes on where it ended.

What has come is kept beside the file as `NAME.incomplete`, and the rest asked for with HTTP's
`Range`. The file gets its name when its bytes have the digest that the server states.
"""

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from huggingface_hub import constants, get_session, hf_raise_for_status

from pruners.support.sizes import size_text
from server.engine.loading.model_cache import locked, sync
from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.progress import TransferProgress

log = logging.getLogger(__name__)

_CHUNK = 2**20
_ATTEMPTS = 5  # in a row that bring nothing new
_WAIT_SECONDS = 1.0
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses that may be gone at the next try."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on a server: its size in bytes and its digest.

    The digest is the sha256 of the bytes (64 digits), or git's name of them as a blob (40 digits,
    sha1). `headers` go to the server of `url`, and not to another that it redirects to if they
    authorise.
    """

    name: str
    url: str
    size: int
    digest: str
    headers: Mapping[str, str] = field(default_factory=dict)


def download(file: RemoteFile, target: Path, lock: Path, progress: TransferProgress) -> None:
    """Write `file` to `target`, unless that is there.

    `lock` lets one process at a time do so. Raises `ModelSourceError` for bytes that are not those
    of the file, the errors of `huggingface_hub` and `httpx2` for what the server says, and
    `OSError`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, f"downloads {file.name}"):
        if target.exists():
            progress.found(file.size)
            return
        part = part_path(target)
        resumed = part.exists()
        _complete(file, part, progress)
        if resumed and _digest(part, file.digest) != file.digest:
            log.warning("%s: what a killed download left is damaged; starting over", file.name)
            progress.found(-_size(part))
            part.unlink()
            _complete(file, part, progress)
        found = _digest(part, file.digest)
        if found != file.digest:
            part.unlink()
            raise ModelSourceError(
                f"{file.name} arrived damaged: its digest is {found}, not {file.digest}; try again"
            )
        sync(part)
        os.replace(part, target)


def part_path(target: Path) -> Path:
    """Return where the bytes of an unfinished download of `target` are."""
    return target.with_name(f"{target.name}.incomplete")


def check_room(folder: Path, count: int, what: str) -> None:
    """Raise `ModelSourceError` if the disk of `folder` has less than `count` bytes free."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < count:
        raise ModelSourceError(
            f"disk full: {what} needs {size_text(count)}, {size_text(free)} are free in {folder}"
        )


def _complete(file: RemoteFile, part: Path, progress: TransferProgress) -> None:
    """Get all bytes of `file` into `part`, over as many connections as that takes."""
    if _size(part) > file.size:
        part.unlink()
    part.touch()
    progress.found(_size(part))
    failures, most = 0, _size(part)
    while _size(part) < file.size:
        problem: Exception
        try:
            _append(file, part, progress)
            problem = ModelSourceError(f"{file.name}: the server ends the download too early")
        except httpx2.TransportError as error:
            problem = error
        except httpx2.HTTPError as error:  # with a status, of `huggingface_hub`
            response = getattr(error, "response", None)
            if response is None or response.status_code not in _PASSING:
                raise
            problem = error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise ModelSourceError(
                    f"disk full: {file.name} has {size_text(_size(part))} of "
                    f"{size_text(file.size)}; make room in {part.parent} and it goes on from there"
                ) from error
            raise
        if _size(part) >= file.size:
            break
        failures = 1 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= _ATTEMPTS:
            raise problem
        log.info("%s: %s; going on from %s", file.name, problem, size_text(_size(part)))
        time.sleep(_WAIT_SECONDS)


def _append(file: RemoteFile, part: Path, progress: TransferProgress) -> None:
    """Ask for what `part` lacks and write what comes to it."""
    have = _size(part)
    headers = {**file.headers, "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", file.url, headers=headers, timeout=timeout) as response:
        if response.status_code == httpx2.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            have = _drop(part, progress)  # the next request asks for all of it
            return
        hf_raise_for_status(response)
        if have and not _continues(response, have):
            have = _drop(part, progress)
        with part.open("ab") as out:
            for chunk in response.iter_bytes():  # as they come: none is lost if the next fails
                have += len(chunk)
                if have > file.size:
                    raise ModelSourceError(
                        f"{file.name}: the server sends more than its {file.size} bytes"
                    )
                out.write(chunk)
                progress.received(len(chunk))


def _continues(response: httpx2.Response, start: int) -> bool:
    """Return whether a response has the bytes from `start` on, and not the whole file."""
    stated = response.headers.get("Content-Range", "")
    return response.status_code == httpx2.codes.PARTIAL_CONTENT and stated.startswith(
        f"bytes {start}-"
    )


def _drop(part: Path, progress: TransferProgress) -> int:
    """Forget what has come; return the 0 bytes that are left."""
    progress.found(-_size(part))
    part.unlink(missing_ok=True)
    return 0


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _digest(path: Path, wanted: str) -> str:
    """Return the digest of a file's bytes, of the kind that `wanted` is of."""
    if len(wanted) == 64:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    named = hashlib.sha1(f"blob {_size(path)}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            named.update(chunk)
    return named.hexdigest()
