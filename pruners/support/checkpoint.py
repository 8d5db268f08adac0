"""What a long run has finished, kept on disk so that an interrupted one goes on from there."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from pruners.support.errors import UserError
from pruners.support.files import FolderKind, check_folder, replace_file, write_json

_IDENTITY = "identity.json"
CHECKPOINT = FolderKind(
    "checkpoint", (_IDENTITY,), (_IDENTITY, "*-????????????.json", "*.safetensors", "search-*.db*")
)


class Checkpoint:
    """A folder of finished parts, one file each, that belong to one `identity`.

    The identity is anything JSON can hold that decides the results: inputs, recipe, versions. The
    folder is made for the first part; one of another identity is emptied then. Without a folder
    nothing is kept. As a context it removes the folder at a good end, and one that it has made
    where the work is refused; an interrupted run leaves it. Raises `TargetError` if something
    other than a checkpoint is in the way.
    """

    def __init__(self, folder: Path | None, identity: object) -> None:
        self._folder = folder
        self._text = json.dumps(identity, sort_keys=True, default=str)
        self._going_on = False
        self._begun = False
        if folder is not None:
            check_folder(folder, CHECKPOINT)
            self._going_on = _read(folder / _IDENTITY) == self._text

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        refused = kind is not None and issubclass(kind, UserError)
        if kind is None or (refused and self._begun):
            self.close()

    def value(self, key: str, compute: Callable[[], Any]) -> Any:  # noqa: ANN401
        """What was noted under `key`, or else what `compute` gives, noted for the next time."""
        found = self.recall(key)
        if found is None:
            found = compute()
            self.note(key, found)
        return found

    def tensors(
        self, key: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """The same for named tensors."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{_file_name(key)}.safetensors"
        if self._going_on and path.exists():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                path.unlink()
        found = compute()
        self._begin()
        replace_file(path, lambda staged: save_file(found, staged))
        return found

    def recall(self, key: str) -> Any | None:  # noqa: ANN401
        """What was noted under `key`, if anything was."""
        if self._folder is None or not self._going_on:
            return None
        return _read(self._folder / f"{_file_name(key)}.json")

    def note(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Keeps a value that JSON can hold, in place of what was there."""
        if self._folder is not None:
            self._begin()
            path = self._folder / f"{_file_name(key)}.json"
            replace_file(path, lambda staged: staged.write_text(json.dumps(value)))

    def close(self) -> None:
        """The run is over: the folder goes."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def path(self, name: str) -> Path | None:
        """Where a library may keep a file of its own beside the parts."""
        self._begin()
        return None if self._folder is None else self._folder / name

    def _begin(self) -> None:
        """Makes the folder, if it is not this run's already."""
        if self._folder is None or self._going_on:
            return
        check_folder(self._folder, CHECKPOINT)
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True)
        write_json(self._folder / _IDENTITY, self._text)
        self._going_on = self._begun = True


def _file_name(key: str) -> str:
    """Readable at its start, of bounded length, different for different keys."""
    return f"{quote(key, safe=' ')[:48]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _read(path: Path) -> Any | None:  # noqa: ANN401
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
