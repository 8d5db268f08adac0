"""A model whose weights are not read yet: its checkpoint, its outline, and what is known of it."""

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from pruners.artefact.folder import Artefact
from server.engine.backends.native.source_precision import SourceBits, source_bits
from server.engine.backends.pytorch.convert import ConvertedBase
from server.engine.loading.checkpoint import open_checkpoint
from server.engine.loading.checkpoint.description import read_generation_config
from server.engine.loading.generation_config import end_token_ids, sampling_defaults
from server.engine.loading.memory_estimate import StoredModel, StoredTensor
from server.engine.loading.outline import served_outline
from server.engine.loading.packed_file import BaseFacts
from server.engine.loading.parameters import CheckpointParameters


class OpenedModel:
    """A model folder or a GGUF file that can be served."""

    def __init__(self, source: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check everything but values. Raises `UnsupportedModelError`."""
        self._checkpoint = open_checkpoint(source)
        self._located = served_outline(self._checkpoint)
        config, folder = self._checkpoint.config, self._checkpoint.folder
        self.facts = BaseFacts(
            fingerprint=self._checkpoint.fingerprint(),
            longest=self._located.context,
            configured=config.max_position_embeddings,
            eos_token_ids=sorted(end_token_ids(folder, config, tokenizer)),
            sampling_defaults=sampling_defaults(read_generation_config(folder, config)),
        )

    def stored(self) -> StoredModel:
        """Return what an estimate of memory has to know."""
        found = self._checkpoint
        tensors = {
            name: StoredTensor(shape, found.stored_type(name))
            for name, shape in found.shapes.items()
        }
        return StoredModel.of(found.config.to_dict(), tensors)

    def source_bits(self) -> SourceBits:
        """Count the weights by how the source stores them."""
        return source_bits(self._located, self._parameters(torch.float32, coded=True))

    def base(
        self, dtype: torch.dtype, coded: bool, artefact: Artefact | None, context: int
    ) -> ConvertedBase:
        """Return the base in an artefact's order, to be read layer by layer for a context.

        Values have `dtype`. With `coded`, matrices come in the codes of the source.
        """
        return ConvertedBase(
            self._located,
            self._parameters(dtype, coded),
            None if artefact is None else artefact.ffn_order,
            None if artefact is None else artefact.kv_order,
            context,
        )

    def _parameters(self, dtype: torch.dtype, coded: bool) -> CheckpointParameters:
        return CheckpointParameters(self._located.model, self._checkpoint, dtype, coded)
