"""Atomic writes of files and folders, and checks of what a command may replace.

Everything is written under a temporary name and then renamed, so that an interrupted command
leaves no half-written result. A command replaces only results of its own kind; `check_folder` and
`check_file` test this before the work begins.
"""

import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pruners.support.errors import UserError


class TargetError(UserError):
    """A command may not write to this place. The message is one line for the user."""


@dataclass(frozen=True, slots=True)
class FolderKind:
    """A kind of folder that commands write.

    `name` is the word for it in messages, such as "artefact". A folder is of this kind if one of
    its files matches one of the glob patterns `markers`; a marker that ends in `.json` must hold an
    object with a `schema`, or a string. `allowed` are patterns of every path that such a folder may
    hold, relative to it (those of folders end in `/`): a folder with anything else is not replaced.
    It is empty for a kind whose files are replaced one by one.
    """

    name: str
    markers: tuple[str, ...]
    allowed: tuple[str, ...] = ()


def check_folder(folder: Path, kind: FolderKind) -> None:
    """Raise `TargetError` unless a folder of this kind may be written at `folder`.

    It may if there is nothing, an empty folder, or one with a marker and only allowed files.
    """
    try:
        _check_parent(folder)
        mode = _file_mode(folder)
        if mode is None:
            return
        if stat.S_ISLNK(mode):
            raise TargetError(f"{folder} is a link; name the folder itself")
        if not stat.S_ISDIR(mode):
            raise TargetError(f"{folder} is a file; name a folder for the {kind.name}")
        if folder.resolve() in _protected_folders():
            raise TargetError(f"{folder} will not be replaced; name a folder of its own")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise TargetError(f"{folder} cannot be written to")
        _check_content(folder, kind)
    except OSError as error:
        raise TargetError(f"cannot write {folder}: {error.strerror}") from error


def _protected_folders() -> set[Path]:
    """Return the current folder, the home folder, and all above them."""
    starts = (Path.cwd(), Path.home().resolve())
    return {folder for start in starts for folder in (start, *start.parents)}


def _check_content(folder: Path, kind: FolderKind) -> None:
    first = next(folder.iterdir(), None)
    markers = [path for pattern in kind.markers for path in folder.glob(pattern)]
    if first is not None and not any(map(_is_marker, markers)):
        raise TargetError(
            f"{folder} holds {first.name} and is no {kind.name}; it will not be replaced, "
            "name another folder"
        )
    for path in sorted(folder.rglob("*")) if kind.allowed else ():
        name = path.relative_to(folder).as_posix() + "/" * path.is_dir()
        if path.is_symlink() or not any(_matches(_final_name(name), p) for p in kind.allowed):
            raise TargetError(
                f"{folder} holds {name}, which no {kind.name} does; move it away, "
                "or name another folder"
            )


def _matches(name: str, pattern: str) -> bool:
    """Return whether a path matches part by part, so that a star does not match a slash."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _final_name(name: str) -> str:
    """Return the target's name if this is a temporary file of `replace_file`, else the name."""
    folder, slash, file = name.rpartition("/")
    last, _, process = file.removeprefix(".").rpartition("-")
    return f"{folder}{slash}{last}" if file.startswith(".") and process.isdigit() else name


def _is_marker(path: Path) -> bool:
    if path.is_symlink():
        return False
    if path.suffix != ".json":
        return True
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(value, str) or (isinstance(value, dict) and "schema" in value)


def check_file(path: Path, *sources: Path) -> None:
    """Raise `TargetError` unless a command may write JSON to `path`.

    It may if there is nothing, an empty file, or JSON. `sources` are files and folders that the
    command reads: `path` must not be one of them or lie in one.
    """
    try:
        mode = _file_mode(path)
        if not path.parent.is_dir():
            raise TargetError(f"{path.parent} is no folder; make it first")
        _check_parent(path)
        place = path.resolve()
        for source in sources:
            if source.exists() and (place == source.resolve() or source.resolve() in place.parents):
                raise TargetError(f"{path} belongs to {source}, which is read; name another file")
        if mode is None:
            return
        if not stat.S_ISREG(mode):
            raise TargetError(f"{path} is no plain file; name another")
        if not os.access(path, os.W_OK):
            raise TargetError(f"{path} cannot be written to")
        if path.stat().st_size and not _is_json(path):
            raise TargetError(f"{path} is there and no JSON; it will not be replaced")
    except OSError as error:
        raise TargetError(f"cannot write {path}: {error.strerror}") from error


def _is_json(path: Path) -> bool:
    with path.open("rb") as file:
        if file.read(1) not in (b"{", b"["):
            return False
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return True


def _file_mode(path: Path) -> int | None:
    try:
        return path.lstat().st_mode
    except FileNotFoundError:
        return None


def _check_parent(path: Path) -> None:
    """Raise `TargetError` unless the nearest existing folder above `path` is writable."""
    above = (*path.absolute().parents, Path(path.anchor))
    parent = next(folder for folder in above if folder.exists())
    if not parent.is_dir():
        raise TargetError(f"cannot write {path}: {parent} is a file")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise TargetError(f"cannot write {path}: {parent} cannot be written to")


@contextmanager
def replace_folder(folder: Path, kind: FolderKind) -> Iterator[Path]:
    """Yield a new folder to fill; on exit without an error it takes the place of `folder`.

    Raises `TargetError` if `folder` may not be replaced.
    """
    check_folder(folder, kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staging, old = Path(scratch) / "new", Path(scratch) / "old"
        staging.mkdir()
        yield staging
        check_folder(folder, kind)  # the work may have taken hours
        with suppress(FileNotFoundError):
            os.replace(folder, old)
        try:
            os.replace(staging, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        shutil.rmtree(old, ignore_errors=True)


def replace_file(path: Path, write: Callable[[Path], object]) -> Path:
    """Call `write` with a temporary path beside `path`, then rename the result to `path`."""
    staged = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        write(staged)
        os.replace(staged, path)
    finally:
        staged.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write a text file in UTF-8 atomically."""
    return replace_file(path, lambda staged: staged.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: object) -> Path:
    """Write a value as JSON atomically, one entry a line.

    Values that JSON has no form for are written as `str(value)`, NaN and infinities as null.
    """
    try:
        text = json.dumps(value, indent=1, default=str, allow_nan=False)
    except ValueError:
        plain = json.loads(json.dumps(value, default=str), parse_constant=lambda name: None)
        text = json.dumps(plain, indent=1)
    return write_text(path, text + "\n")


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
