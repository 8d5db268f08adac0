"""Parameters of a Hugging Face folder with one safetensors file or several."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pruners.architecture import SERVED_FAMILIES, UnsupportedModelError, describe_refusal
from server.engine.backends.native.packing import Bits, Codes
from server.engine.loading.checkpoint.base import EMBEDDING, HEAD, ModelCheckpoint, Rows
from server.engine.loading.checkpoint.description import read_config
from server.engine.loading.model_files import stored_tensors

_HARMLESS = ".rotary_emb.inv_freq"  # older folders hold them; they are computed
_ROWS = 4096  # that are compared at a time


class SafetensorsFolder(ModelCheckpoint):
    """A folder whose tensors are floats. A file is mapped only while one tensor is read."""

    def __init__(self, folder: Path) -> None:
        """Read the configuration and the headers.

        Raises `UnsupportedModelError` for what is damaged, missing, or no float.
        """
        super().__init__(folder, folder, read_config(folder))
        family = self.config.model_type
        if family not in SERVED_FAMILIES:
            raise UnsupportedModelError(describe_refusal(family, self.config, SERVED_FAMILIES))
        for field in ("quantization_config", "transformers_weights"):
            if getattr(self.config, field, None) is not None:
                raise UnsupportedModelError(f"config.json: {field} is not supported")
        found = stored_tensors(folder)
        self._tensors = {name: one for name, one in found.items() if not name.endswith(_HARMLESS)}
        if self.config.tie_word_embeddings and {HEAD, EMBEDDING} <= self._tensors.keys():
            self._check_tied()
            del self._tensors[HEAD]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of each parameter."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def stored_type(self, name: str) -> str:
        """Return the type of a parameter in the file, such as `BF16`."""
        return self._tensors[name].type

    def is_quantised(self, name: str) -> bool:
        """Return False: the tensors are floats."""
        return False

    def read(self, name: str, rows: Rows = None) -> Tensor:
        """Return a copy of a parameter's values, or of some rows: bf16 as it is, others in fp32."""
        with safe_open(self._tensors[name].file, framework="pt") as file:
            mapped = file.get_tensor(name)
            part = mapped if rows is None else mapped[rows]
            dtype = torch.bfloat16 if part.dtype == torch.bfloat16 else torch.float32
            return part.to(dtype, copy=True)

    def code_bits(self, name: str) -> Bits | None:
        """Return None: there are no codes."""
        return None

    def codes(self, name: str, rows: Rows = None) -> Codes | None:
        """Return None: there are no codes."""
        return None

    def release(self, name: str) -> None:
        """Do nothing: a file is mapped only while it is read."""

    def _check_tied(self) -> None:
        """Raise `UnsupportedModelError` if the head is stored and is not the embedding."""
        head, embedding = self._tensors[HEAD], self._tensors[EMBEDDING]
        equal = head.shape == embedding.shape and all(
            torch.equal(
                self.read(HEAD, slice(start, start + _ROWS)).float(),
                self.read(EMBEDDING, slice(start, start + _ROWS)).float(),
            )
            for start in range(0, head.shape[0], _ROWS)
        )
        if not equal:
            raise UnsupportedModelError(
                f"{self.path}: tie_word_embeddings is true, but the tensor {HEAD} is another"
            )
