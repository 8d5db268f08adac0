"""Artefacts as one file, to be shared: a zip archive with a list of what is in it.

`pack.json` is the first entry. It names the model's fingerprint, and of each file its size and its
SHA-256. Nothing of an archive is trusted: names, sizes and hashes are checked while it is read, and
what was read is loaded as an artefact before it takes its place.
"""

import hashlib
import json
import shutil
import tempfile
import zipfile
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from filelock import FileLock

from pruners.artefact.folder import ARTEFACT, Artefact, ArtefactError, load_artefact
from pruners.support.errors import UserError
from pruners.support.files import check_folder, file_hash, replace_file, replace_folder
from pruners.support.validation import EXACT, Count, validate
from server.engine.loading.artefact_lookup import artefacts_folder, kept_folder

_LIST = "pack.json"
_SCHEMA = 1
_MAX_LIST_BYTES = 2**20
_MAX_FILES = 256
MAX_BYTES = 8 * 2**30
"""Largest size of an unpacked artefact."""
_TIME = (1980, 1, 1, 0, 0, 0)  # of each entry, so that equal artefacts give equal archives
_CHUNK = 2**20


class ArchiveError(UserError):
    """An archive is no packed artefact, is damaged, or may not be unpacked. One line."""


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file of an archive: its size in bytes, and its SHA-256 in hexadecimal digits."""

    size: Count
    sha256: str
    __pydantic_config__ = EXACT


@dataclass(frozen=True, slots=True)
class PackList:
    """What `pack.json` holds; `files` are by their names in the artefact's folder."""

    schema: int
    model: str
    fingerprint: str
    files: dict[str, PackedFile]
    __pydantic_config__ = EXACT


def pack_artefact(folder: Path, target: Path) -> Artefact:
    """Write an artefact's folder to the file `target`, under a temporary name and renamed.

    Raises `ArtefactError` for a folder that is no artefact, `ArchiveError` if the file cannot be
    written or is something else.
    """
    artefact = load_artefact(folder)
    if target.exists() and not zipfile.is_zipfile(target):
        raise ArchiveError(f"{target} is there and no archive; name another file")
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    names = [name for name in names if _is_allowed(name) and (folder / name).is_file()]
    files = {
        name: PackedFile((folder / name).stat().st_size, file_hash(folder / name)) for name in names
    }
    listed = PackList(_SCHEMA, artefact.model_name, artefact.fingerprint, files)

    def write(staged: Path) -> None:
        with zipfile.ZipFile(staged, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo(_LIST, _TIME), _to_json(listed))
            for name in names:
                entry = zipfile.ZipInfo(name, _TIME)
                entry.compress_type = zipfile.ZIP_DEFLATED
                with (folder / name).open("rb") as source, archive.open(entry, "w") as packed:
                    shutil.copyfileobj(source, packed, _CHUNK)

    try:
        replace_file(target, write)
    except OSError as error:
        raise ArchiveError(f"cannot write {target}: {error.strerror or error}") from error
    return artefact


def unpack_artefact(source: Path, fingerprint: str | None, replace: bool) -> tuple[Artefact, Path]:
    """Unpack an archive to where the server looks for the artefact of its model.

    `fingerprint` is that of the model that it has to be for, None for any. An artefact that is
    there already is kept unless `replace` is set. Returns the artefact and its folder. Raises
    `ArchiveError`, `ArtefactError` or `TargetError`; then nothing has changed.
    """
    try:
        with zipfile.ZipFile(source) as archive:
            listed = _read_list(archive)
            if fingerprint not in (None, listed.fingerprint):
                raise ArchiveError(
                    f"{source} is for '{listed.model}' ({listed.fingerprint}), not for this model "
                    f"({fingerprint})"
                )
            folder = kept_folder(listed.fingerprint)
            if folder.exists() and not replace:
                raise ArchiveError(
                    f"there is an artefact of this model in {folder}; give --replace to replace it"
                )
            return _unpack(archive, listed, folder), folder
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ArchiveError(f"{source} is no packed artefact, or is damaged: {error}") from error
    except OSError as error:
        raise ArchiveError(f"cannot unpack {source}: {error.strerror or error}") from error


def _unpack(archive: zipfile.ZipFile, listed: PackList, folder: Path) -> Artefact:
    """Unpack into a new folder, check that as an artefact, and let it take its place."""
    artefacts_folder().mkdir(parents=True, exist_ok=True)
    check_folder(folder, ARTEFACT)
    free = shutil.disk_usage(artefacts_folder()).free
    needed = sum(file.size for file in listed.files.values())
    if needed > free:
        raise ArchiveError(
            f"{folder.parent} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} needed"
        )
    # While it holds the lock nobody takes its folder for what a killed process has left.
    with (
        FileLock(artefacts_folder() / ".lock"),
        tempfile.TemporaryDirectory(prefix=".unpacked-", dir=artefacts_folder()) as scratch,
    ):
        staging = Path(scratch) / "artefact"
        for name, file in listed.files.items():
            _extract(archive, name, file, staging / name)
        artefact = load_artefact(staging)
        if (artefact.fingerprint, artefact.model_name) != (listed.fingerprint, listed.model):
            raise ArtefactError(
                f"the archive says that it is for {listed.fingerprint}, its artefact is for "
                f"{artefact.fingerprint}"
            )
        with replace_folder(folder, ARTEFACT) as target:
            shutil.copytree(staging, target, dirs_exist_ok=True)
    return artefact


def _read_list(archive: zipfile.ZipFile) -> PackList:
    """Return the list of an archive, whose files are all named in it. Raises `ArchiveError`."""
    names = [entry.filename for entry in archive.infolist()]
    if _LIST not in names:
        raise ArchiveError(f"{archive.filename} is no packed artefact: it has no {_LIST}")
    with archive.open(_LIST) as file:
        text = file.read(_MAX_LIST_BYTES + 1)
    try:
        if len(text) > _MAX_LIST_BYTES:
            raise ValueError("it is too large")
        listed = validate(PackList, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{archive.filename} is damaged: {_LIST}: {error}") from error
    if listed.schema != _SCHEMA:
        raise ArchiveError(f"{archive.filename} has schema {listed.schema}, this version {_SCHEMA}")
    if not (len(listed.fingerprint) == 32 and set(listed.fingerprint) <= set("0123456789abcdef")):
        raise ArchiveError(f"{archive.filename} is damaged: {_LIST}: fingerprint is no fingerprint")
    wrong = [name for name in names if name != _LIST and not _is_allowed(name)]
    if wrong:
        raise ArchiveError(f"{archive.filename} holds {wrong[0]!r}, which no artefact does")
    if sorted(names) != sorted({*listed.files, _LIST}) or len(names) > _MAX_FILES:
        raise ArchiveError(f"{archive.filename} does not hold what its {_LIST} says")
    size = sum(file.size for file in listed.files.values())
    if size > MAX_BYTES:
        raise ArchiveError(f"{archive.filename} unpacks to {size / 1e9:.1f} GB, which is too much")
    return listed


def _extract(archive: zipfile.ZipFile, name: str, listed: PackedFile, target: Path) -> None:
    """Write one file of an archive. Raises `ArchiveError` if it is not as listed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, left = hashlib.sha256(), listed.size
    with archive.open(name) as packed, target.open("xb") as file:
        while chunk := packed.read(_CHUNK):
            left -= len(chunk)
            if left < 0:
                break
            digest.update(chunk)
            file.write(chunk)
    if left or digest.hexdigest() != listed.sha256:
        raise ArchiveError(f"{archive.filename} is damaged: {name} is not what {_LIST} says")


def _is_allowed(name: str) -> bool:
    """Return whether an artefact may have a file of this name.

    The patterns have no star that matches a slash, and no name of them begins with a dot.
    """
    parts = name.split("/")
    if any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        return False
    return any(
        len(parts) == len(pattern.split("/"))
        and all(map(fnmatchcase, parts, pattern.split("/")))
        and parts[-1] != ""
        for pattern in ARTEFACT.allowed
    )


def _to_json(listed: PackList) -> str:
    files = {name: {"size": one.size, "sha256": one.sha256} for name, one in listed.files.items()}
    head = {"schema": listed.schema, "model": listed.model, "fingerprint": listed.fingerprint}
    return json.dumps({**head, "files": files}, indent=1)
