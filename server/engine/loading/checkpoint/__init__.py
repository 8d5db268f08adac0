"""Checkpoints: the parameters of a model, read one by one from the files that hold them."""

from pathlib import Path

from pruners.architecture import UnsupportedModelError
from server.engine.loading.checkpoint.base import ModelCheckpoint, Rows
from server.engine.loading.checkpoint.gguf_checkpoint import GgufCheckpoint
from server.engine.loading.checkpoint.safetensors_folder import SafetensorsFolder


def open_checkpoint(path: Path) -> ModelCheckpoint:
    """Open a folder of safetensors, or a GGUF file of one or several parts.

    Raises `UnsupportedModelError` for what is damaged, missing or not supported.
    """
    return SafetensorsFolder(path) if path.is_dir() else _open_gguf(path)


def description_folder(path: Path) -> Path:
    """Return the folder with a model's configuration and tokenizer; a GGUF file's is in the cache.

    Raises `UnsupportedModelError`.
    """
    return path if path.is_dir() else _open_gguf(path).folder


def _open_gguf(path: Path) -> GgufCheckpoint:
    try:
        return GgufCheckpoint(path)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = error.strerror or str(error)
        raise UnsupportedModelError(f"cannot read {path}: {where}{reason}") from error


__all__ = ["ModelCheckpoint", "Rows", "description_folder", "open_checkpoint"]
