"""What is in the cache folder, and how to get rid of it."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pruners.support.errors import UserError
from server.engine.loading.model_cache import MANIFEST
from server.engine.loading.source import cache_folder

_KINDS = {
    "models": "model",
    "gguf": "what a GGUF file says of itself",
    "packed": "packed weights",
    "downloads": "unfinished download",
    "artefacts": "artefact, learned or unpacked",
    "text": "text that a base has written",
    "benchmarks": "files of benchmarks",
}
_MADE_AGAIN = ("gguf", "packed")  # by the next start, from the model's own files


class CacheError(UserError):
    """The cache cannot be cleared. One clear line."""


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """Something in the cache: its name, what it is, its bytes, and when it was last used.

    `used` is in seconds since 1970.
    """

    name: str
    what: str
    size: int
    used: float


def cache_entries() -> list[CacheEntry]:
    """Return what is in the cache, the last used first."""
    found = []
    for path in _paths():
        files = [one for one in (path, *path.rglob("*")) if one.is_file()]
        manifest = path / MANIFEST
        times = [one.stat().st_mtime for one in ([manifest] if manifest.exists() else files)]
        folder, size = path.parent.name, sum(one.stat().st_size for one in files)
        what, used = _KINDS.get(folder, folder), max(times, default=0.0)
        found.append(CacheEntry(_name(path), what, size, used))
    return sorted(found, key=lambda entry: entry.used, reverse=True)


def clear_cache(names: Sequence[str]) -> list[str]:
    """Remove entries by their names; without any, all that the next start makes again by itself.

    Running servers go on with what they have. Returns the names. Raises `CacheError`.
    """
    there = {_name(path): path for path in _paths()}
    for name in names:
        if name not in there:
            raise CacheError(f"nothing in {cache_folder()} is called '{name}'; see `trimtab cache`")
    chosen = names or [name for name, path in there.items() if path.parent.name in _MADE_AGAIN]
    for name in chosen:
        try:
            if there[name].is_dir():
                shutil.rmtree(there[name])
            else:
                there[name].unlink()
        except OSError as error:
            raise CacheError(f"cannot remove {there[name]}: {error.strerror}") from error
    return list(chosen)


def _paths() -> Iterator[Path]:
    """Yield everything that lies in a folder of the cache, but not locks and unfinished work."""
    root = cache_folder()
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith("."):
            for path in sorted(folder.iterdir()):
                if not path.name.startswith(".") and path.suffix != ".lock":
                    yield path


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
