"""Checkpoints of long runs: finished parts on disk, from which an interrupted run continues."""

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
    """A folder with one file for each finished part of a run.

    `identity` is a JSON value of everything that decides the results: inputs, recipe, versions. The
    folder is created when the first part is saved; a checkpoint of another identity is deleted
    then. With `folder` None nothing is saved.

    As a context manager, it deletes the folder when the run succeeds, and also when the run ends
    with a `UserError` and this run has created the folder. After any other error the folder stays.
    Raises `TargetError` if something other than a checkpoint is at `folder`.
    """

    def __init__(self, folder: Path | None, identity: object) -> None:
        self._folder = folder
        self._identity = json.dumps(identity, sort_keys=True, default=str)
        self._folder_is_ours = False
        self._created = False
        if folder is not None:
            check_folder(folder, CHECKPOINT)
            self._folder_is_ours = _read_json(folder / _IDENTITY) == self._identity

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        refused = kind is not None and issubclass(kind, UserError)
        if kind is None or (refused and self._created):
            self.delete()

    def get_or_compute(self, key: str, compute: Callable[[], Any]) -> Any:  # noqa: ANN401
        """Return the value saved under `key`; if there is none, compute and save it."""
        found = self.load(key)
        if found is None:
            found = compute()
            self.save(key, found)
        return found

    def get_or_compute_tensors(
        self, key: str, compute: Callable[[], dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """Return the named tensors saved under `key`; if there are none, compute and save them."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{_file_name(key)}.safetensors"
        if self._folder_is_ours and path.exists():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                path.unlink()
        found = compute()
        self._create_folder()
        replace_file(path, lambda staged: save_file(found, staged))
        return found

    def load(self, key: str) -> Any | None:  # noqa: ANN401
        """Return the value saved under `key`, or None."""
        if self._folder is None or not self._folder_is_ours:
            return None
        return _read_json(self._folder / f"{_file_name(key)}.json")

    def save(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Save a JSON value under `key`, replacing an earlier one."""
        if self._folder is not None:
            self._create_folder()
            path = self._folder / f"{_file_name(key)}.json"
            replace_file(path, lambda staged: staged.write_text(json.dumps(value)))

    def delete(self) -> None:
        """Delete the folder, since the run is over."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def file_path(self, name: str) -> Path | None:
        """Return a path in the folder for a file that another library writes, or None."""
        self._create_folder()
        return None if self._folder is None else self._folder / name

    def _create_folder(self) -> None:
        if self._folder is None or self._folder_is_ours:
            return
        check_folder(self._folder, CHECKPOINT)
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True)
        write_json(self._folder / _IDENTITY, self._identity)
        self._folder_is_ours = self._created = True


def _file_name(key: str) -> str:
    """Return a file name of bounded length that begins like `key` and is unique to it."""
    return f"{quote(key, safe=' ')[:48]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _read_json(path: Path) -> Any | None:  # noqa: ANN401
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
