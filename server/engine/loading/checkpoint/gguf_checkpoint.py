"""Parameters of a GGUF file, under the names and in the order of rows that `transformers` has."""

import hashlib
import logging
import mmap
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from server.engine.backends.native.packing import Bits, Codes
from server.engine.loading.checkpoint.base import ModelCheckpoint, Rows
from server.engine.loading.checkpoint.description import read_config
from server.engine.loading.gguf_file import GgufModel, open_gguf, part_paths
from server.engine.loading.gguf_file.tensors import (
    FLOATS,
    stored_rows,
    stored_shift,
    stored_values,
    tensor_names,
)
from server.engine.loading.gguf_file.types import tensor_type
from server.engine.loading.model_cache import cached, remove_stale
from server.engine.loading.source import cache_folder

log = logging.getLogger(__name__)


class GgufCheckpoint(ModelCheckpoint):
    """A GGUF file, mapped into memory. What it says of itself is kept in the cache folder."""

    def __init__(self, path: Path) -> None:
        """Describe the file, once. Raises `UnsupportedModelError` and `OSError`."""
        self._path = path
        folder = described(path)
        super().__init__(path, folder, read_config(folder))

    @cached_property
    def _model(self) -> GgufModel:
        return open_gguf(self._path)

    @cached_property
    def _names(self) -> dict[str, str]:
        return tensor_names(self._model, self.config)

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each parameter. Raises `UnsupportedModelError`."""
        shapes = {name: self._model.tensors[stored].shape for name, stored in self._names.items()}
        return {name: tuple(reversed(shape.tolist())) for name, shape in shapes.items()}

    def stored_type(self, name: str) -> str:
        """Return the type of a parameter in the file, such as `Q4_K`."""
        return str(self._model.tensors[self._names[name]].tensor_type.name)

    def is_quantised(self, name: str) -> bool:
        """Return whether a parameter is kept in blocks of codes."""
        return self.stored_type(name) not in FLOATS

    def read(self, name: str, rows: Rows = None) -> Tensor:
        """Return a parameter's values, or those of some rows, dequantised exactly to fp32.

        Raises `UnsupportedModelError` for values that are not finite.
        """
        values = stored_values(self._model, self._names[name], self._stored(name, rows))
        return values - stored_shift(self.config, name)

    def code_bits(self, name: str) -> Bits | None:
        """Return the bits of a matrix's `codes`, None where there are none."""
        return tensor_type(self.stored_type(name)).bits

    def codes(self, name: str, rows: Rows = None) -> Codes | None:
        """Return the codes of a quantised matrix, or of some rows, where 4 or 8 bits hold them."""
        tensor = self._model.tensors[self._names[name]]
        return tensor_type(self.stored_type(name)).codes(tensor.data[self._stored(name, rows)])

    def release(self, name: str) -> None:
        """Unmap the pages of a tensor; reading it again maps them again."""
        data = self._model.tensors[self._names[name]].data
        while isinstance(data.base, np.ndarray):
            data = data.base
        if isinstance(data.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            tensor = self._model.tensors[self._names[name]]
            start = tensor.data_offset // mmap.PAGESIZE * mmap.PAGESIZE
            data.base.madvise(
                mmap.MADV_DONTNEED, start, tensor.n_bytes + tensor.data_offset - start
            )

    def _stored(self, name: str, rows: Rows) -> NDArray[np.int64] | slice:
        """Return which rows of the file some rows of a parameter are."""
        wanted = slice(None) if rows is None else rows
        index = wanted.numpy() if isinstance(wanted, Tensor) else wanted
        order = stored_rows(self.config, name, self.shapes[name][0])
        return index if order is None else order[index]


def described(path: Path) -> Path:
    """Return the folder of a file's description, which is made once.

    Raises `UnsupportedModelError` and `OSError`.
    """

    def describe(staging: Path) -> None:
        # Imported here: the configurations of `transformers` take seconds to import.
        from server.engine.loading.gguf_file.describe import describe_gguf

        log.info("reading what %s says of itself, once", path.name)
        describe_gguf(open_gguf(path), staging / "model")

    return cached(_description_folder(path), describe)


def _description_folder(path: Path) -> Path:
    """Return the place of a file's description. Another file or another time is another place."""
    key = ""
    for part in part_paths(path):
        stat = part.stat()
        key += f"{part.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    folder = cache_folder() / "gguf"
    remove_stale(folder)
    return folder / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
