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

from pruners.files import replaced

_IDENTITY = "identity.json"


class Journal:
    """A folder of finished parts, one file each, that belong to one `identity`.

    The identity is anything JSON can hold that decides the results: inputs, recipe, versions. A
    folder of another identity is emptied. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, identity: object) -> None:
        self._folder = folder
        if folder is None:
            return
        text = json.dumps(identity, sort_keys=True, default=str)
        if _read(folder / _IDENTITY) != text:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            replaced(folder / _IDENTITY, lambda path: path.write_text(json.dumps(text)))

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
        if path.exists():
            try:
                return load_file(path)
            except (SafetensorError, OSError):
                path.unlink()
        found = compute()
        replaced(path, lambda staged: save_file(found, staged))
        return found

    def recall(self, key: str) -> Any | None:  # noqa: ANN401
        """What was noted under `key`, if anything was."""
        return None if self._folder is None else _read(self._folder / f"{_file_name(key)}.json")

    def note(self, key: str, value: Any) -> None:  # noqa: ANN401
        """Keeps a value that JSON can hold, in place of what was there."""
        if self._folder is not None:
            path = self._folder / f"{_file_name(key)}.json"
            replaced(path, lambda staged: staged.write_text(json.dumps(value)))

    def close(self) -> None:
        """The run is over: the folder goes."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def path(self, name: str) -> Path | None:
        """Where a library may keep a file of its own beside the parts."""
        return None if self._folder is None else self._folder / name


def _file_name(key: str) -> str:
    """Readable at its start, of bounded length, different for different keys."""
    return f"{quote(key, safe=' ')[:48]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def _read(path: Path) -> Any | None:  # noqa: ANN401
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
