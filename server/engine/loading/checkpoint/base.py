"""What a model's files give: a description, and parameters that are read one by one."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from pruners.support.fingerprint import fingerprint_of
from server.engine.backends.native.packing import Bits, Codes
from server.engine.loading.checkpoint.description import read_tokenizer

Rows = slice | Tensor | None
"""Which rows of a matrix are read: a slice, int64 indices `[rows]`, or None for all."""


class ModelCheckpoint(ABC):
    """The parameters of a decoder by their names in `transformers`. Nothing is kept in memory.

    `path` is what the user named: a folder or a GGUF file. `folder` holds config, tokenizer and
    generation config. A head that is tied to the embedding has no name of its own.
    """

    def __init__(self, path: Path, folder: Path, config: PretrainedConfig) -> None:
        self.path = path
        self.folder = folder
        self.config = config

    @property
    @abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each parameter. Raises `UnsupportedModelError`."""

    @abstractmethod
    def stored_type(self, name: str) -> str:
        """Return the type of a parameter in the file, such as `BF16` or `Q4_K`."""

    @abstractmethod
    def is_quantised(self, name: str) -> bool:
        """Return whether a parameter is kept in blocks of codes, not as floats."""

    @abstractmethod
    def read(self, name: str, rows: Rows = None) -> Tensor:
        """Return a copy of a parameter's values, or of some rows, in fp32 or bf16.

        Raises `UnsupportedModelError` for values of a GGUF file that are not finite.
        """

    @abstractmethod
    def code_bits(self, name: str) -> Bits | None:
        """Return the bits of a matrix's `codes`, None where there are none."""

    @abstractmethod
    def codes(self, name: str, rows: Rows = None) -> Codes | None:
        """Return the codes of a quantised matrix, or of some rows, where 4 or 8 bits hold them."""

    @abstractmethod
    def release(self, name: str) -> None:
        """Let go of the memory that reading a parameter mapped."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer. Raises `UnsupportedModelError`."""
        return read_tokenizer(self.folder)

    def fingerprint(self) -> str:
        """Return the fingerprint of the loaded model, from the rows that are in its sample."""
        shapes = dict(self.shapes)
        if self.config.tie_word_embeddings:
            shapes[HEAD] = shapes[EMBEDDING]
        return fingerprint_of(shapes, self._sample)

    def _sample(self, name: str, places: Tensor) -> Tensor:
        """Return the values at `places` in the flattened parameter, both `[places]`."""
        stored = name if name in self.shapes else EMBEDDING
        shape = self.shapes[stored]
        if len(shape) < 2:
            return self.read(stored)[places]
        rows, columns = places // shape[1], places % shape[1]
        unique, inverse = torch.unique(rows, return_inverse=True)
        return self.read(stored, unique)[inverse, columns]


EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
"""The names of the embedding and the head in all families that are served."""
