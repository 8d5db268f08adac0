"""What the engine needs of a backend: weights, and a decoder that runs segments through them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pruners.correction import Correction
from pruners.reading.maps import KVMaps
from pruners.variant import Block, VariantSpec
from server.engine.cache.eviction import AttentionTables, CosSinTables
from server.engine.cache.kv_cache import KVCache
from server.engine.cache.sequence_cache import SequenceCache
from server.engine.draw import Draw


@dataclass(slots=True)
class Segment:
    """Consecutive tokens of one sequence to process now. Room in `cache` is reserved already.

    `outputs` is the number of last tokens whose hidden states are needed; None stands for all. The
    hidden states of the other tokens may be wrong: the last layer only caches their keys and
    values.

    `shallow` says which tokens run through the layers below `depth` only; linear maps of their
    hidden states there fill the cache of the layers above. None: all run through all layers.
    A shallow token is never among the `outputs`.
    """

    tokens: list[int]
    cache: SequenceCache
    variant: VariantSpec
    outputs: int | None = None
    shallow: list[bool] | None = None
    depth: int = 0


def check_shallow(segments: Sequence[Segment], depths: Collection[int]) -> bool:
    """Return whether any token is shallow.

    Raise `ValueError` for shallow tokens that cannot be: `depths` are those of which there are
    maps.
    """
    found = False
    for segment in segments:
        if segment.shallow is None:
            continue
        if len(segment.shallow) != len(segment.tokens):
            raise ValueError(f"{len(segment.shallow)} marks for {len(segment.tokens)} tokens")
        if not any(segment.shallow):
            continue
        found = True
        if segment.depth not in depths:
            raise ValueError(f"no maps for shallow tokens of depth {segment.depth}")
        outputs = len(segment.tokens) if segment.outputs is None else segment.outputs
        if any(segment.shallow[len(segment.shallow) - outputs :]):
            raise ValueError("the hidden state of a shallow token is asked for")
    return found


def check_rows(tokens: list[int], last_position: int, vocabulary: int, rope: CosSinTables) -> None:
    """Raise `IndexError` for a token outside the vocabulary or a position outside the tables.

    The kernels do not check their indices.
    """
    if min(tokens) < 0 or max(tokens) >= vocabulary:
        raise IndexError(f"a token is not among the vocabulary's {vocabulary}")
    for cos, _ in rope.values():
        if last_position >= len(cos):
            raise IndexError(f"position {last_position} is not among {len(cos)}")


class TensorHolder(Protocol):
    """A part of a model that keeps tensors in memory."""

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor."""
        ...


class LayerTensors(Protocol):
    """One layer's matrices, by the sub-block that reads them."""

    def attention_tensors(self) -> list[Tensor]:
        """Return the tensors of the projections of attention, whose prefix a variant reads."""
        ...

    def mlp_tensors(self) -> list[Tensor]:
        """Return the tensors of the projections of the MLP, whose prefix a variant reads."""
        ...


class Weights(AttentionTables, Protocol):
    """A base's weights in a backend's layout, of which every variant is a prefix."""

    @property
    def dtype(self) -> torch.dtype:
        """Return the default dtype of the KV cache."""
        ...

    @property
    def device(self) -> torch.device:
        """Return the device on which the weights are."""
        ...

    @property
    def precision(self) -> str:
        """Return how values are stored, such as `float32` or `int4`."""
        ...

    @property
    def context(self) -> int:
        """Return the largest number of tokens of a prompt and its answer."""
        ...

    @property
    def supports_int8_cache(self) -> bool:
        """Return whether the decoder can keep keys and values in 8 bits."""
        ...

    @property
    def selects_pages(self) -> bool:
        """Return whether the decoder attends to chosen pages where a budget selects them."""
        ...

    @property
    def layers(self) -> Sequence[LayerTensors]:
        """Return the layers, the first one first."""
        ...

    def head_tensors(self, rows: int) -> list[Tensor]:
        """Return the tensors that choosing the next tokens of `rows` rows reads."""
        ...

    def tensors(self) -> list[Tensor]:
        """Return every resident tensor; one that is used twice, such as a tied head, once."""
        ...


class Decoder(Protocol):
    """Runs segments through the base or its variants. Used by one thread at a time."""

    @property
    def weights(self) -> Weights:
        """Return the weights that the decoder reads."""
        ...

    @property
    def cache(self) -> KVCache:
        """Return the cache that the decoder writes keys and values to."""
        ...

    @property
    def torch_threads(self) -> int | None:
        """Return how many threads PyTorch should use beside the decoder; None: no matter."""
        ...

    def forward(self, segments: list[Segment]) -> Tensor:
        """Return hidden states `[rows, hidden]` after the final norm; cache keys and values.

        Rows follow the tokens of the segments in order. Each segment's `cache` is advanced. Raises
        `IndexError` for a token or a position that the model does not have, and `ValueError`,
        before anything changes, for shallow tokens of a depth without maps or among the outputs.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits `[rows, vocab]` of final hidden states `[rows, hidden]`."""
        ...

    def argmax(self, hidden: Tensor) -> list[int]:
        """Return the likeliest token of each row of `hidden`, `[rows, hidden]`.

        It is -1 where the highest logit is not a finite number.
        """
        ...

    def sample(self, hidden: Tensor, draws: Sequence[Draw]) -> list[int]:
        """Return the token that each draw takes of the logits of its row of `hidden`.

        `hidden` is `[rows, hidden]`. The tokens are those of `draw.choose`; a row's does not depend
        on the other rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class Additions:
    """Corrections of further variants, by variant and block, and maps of further depths.

    `kv_order` is that of the served KV groups, int `[layers, kv_groups]`; None: as in the source.
    """

    corrections: Mapping[str, Mapping[Block, Correction]]
    maps: Mapping[int, KVMaps]
    kv_order: Tensor | None = None


BlockCorrections = Mapping[Block, Mapping[str, TensorHolder]]
"""The corrections in a backend's layout, by block, then by the variant's name."""


class ModelBackend(Protocol):
    """A base, its variants' corrections and its readers' maps in one backend's layout."""

    @property
    def weights(self) -> Weights:
        """Return the weights of the base."""
        ...

    @property
    def corrections(self) -> BlockCorrections:
        """Return what variants add to the base."""
        ...

    @property
    def maps(self) -> Mapping[int, TensorHolder]:
        """Return what readers add to the base: the maps of keys and values, by depth."""
        ...

    def open_decoder(self, slots: int, cache_dtype: torch.dtype) -> Decoder:
        """Return a decoder over a new cache of `slots` tokens.

        Raises `MemoryError`, `RuntimeError` or `TypeError` for a cache that cannot be allocated.
        """
        ...

    def prepare(self, additions: "Additions") -> Callable[[], None]:
        """Convert what further variants and readers need, and return what adds it.

        All decoders see it once that is called, between two of their steps.
        """
        ...
