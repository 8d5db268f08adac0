"""Checkpoints: the parameters of a model, read one by one from the files that hold them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pruners.architecture import UnsupportedModelError
from server.engine.loading.checkpoint.base import ModelCheckpoint, Rows
from server.engine.loading.checkpoint.gguf_checkpoint import GgufCheckpoint, described
from server.engine.loading.checkpoint.safetensors_folder import SafetensorsFolder


def open_checkpoint(path: Path) -> ModelCheckpoint:
    """Open a folder of safetensors, or a GGUF file of one or several parts.

    Raises `UnsupportedModelError` for what is damaged, missing or not supported.
    """
    if path.is_dir():
        return SafetensorsFolder(path)
    with _readable(path):
        return GgufCheckpoint(path)


def description_folder(path: Path) -> Path:
    """Return the folder with a model's configuration and tokenizer; a GGUF file's is in the cache.

    Raises `UnsupportedModelError`.
    """
    if path.is_dir():
        return path
    with _readable(path):
        return described(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what the system says of a file into `UnsupportedModelError`."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        raise UnsupportedModelError(f"cannot read {path}: {where}{reason}") from error


__all__ = ["ModelCheckpoint", "Rows", "description_folder", "open_checkpoint"]
