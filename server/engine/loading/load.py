"""From a model's name to something that can be served."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pruners.architecture import UnsupportedModelError
from pruners.artefact.folder import Artefact
from pruners.reading.reader import PromptReader, token_kinds
from pruners.variant import VariantSpec, base_spec
from server.engine.backends.base import (
    BlockCorrections,
    Decoder,
    ModelBackend,
    TensorHolder,
    Weights,
)
from server.engine.backends.native import library as native_library
from server.engine.backends.native.backend import NativeBackend
from server.engine.backends.native.decoder import add_head_screen
from server.engine.backends.native.packed_corrections import pack_corrections
from server.engine.backends.native.packed_maps import pack_maps
from server.engine.backends.native.packed_weights import pack_weights, round_weights
from server.engine.backends.native.packing import Bits
from server.engine.backends.pytorch.backend import PyTorchBackend
from server.engine.backends.pytorch.convert import convert_weights
from server.engine.backends.pytorch.corrections import convert_corrections
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.loading.checkpoint import ModelCheckpoint, description_folder, open_checkpoint
from server.engine.loading.checkpoint.description import (
    line_of,
    read_config,
    read_generation_config,
    read_tokenizer,
)
from server.engine.loading.context import limit_context
from server.engine.loading.generation_config import (
    check_embedded,
    check_tokens,
)
from server.engine.loading.heap import large_blocks_go_back
from server.engine.loading.memory_check import (
    check_memory,
    check_packed_memory,
    multiplies_bf16,
    serving_on,
)
from server.engine.loading.opened_model import OpenedModel
from server.engine.loading.outline import outline_of, served_outline
from server.engine.loading.packed_cache import find_packed, packed_base, packed_key
from server.engine.loading.packed_file import PackedBase
from server.engine.loading.stages import stage
from server.engine.precision import BITS, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
_PACKING_CONTEXT = 512  # tokens, for what is computed while packing


@dataclass(slots=True)
class LoadedModel:
    """A base in serving layout with its tokenizer and its variants, of which `base` is the first.

    `fingerprint` identifies the base's parameters. `sampling_defaults` are the model's own sampling
    parameters. `readers` are by name; `token_kinds` int8 `[vocab]` are those of tokens, if
    there are readers. The corrections and the maps of `artefact`, which is in `artefact_folder`,
    are in `backend` only.
    """

    name: str
    fingerprint: str
    backend: ModelBackend
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    variants: dict[str, VariantSpec]
    artefact: Artefact | None
    sampling_defaults: dict[str, float]
    readers: dict[str, PromptReader] = field(default_factory=dict)
    token_kinds: Tensor | None = None
    artefact_folder: Path | None = None

    @property
    def weights(self) -> Weights:
        """Return the weights of the base."""
        return self.backend.weights

    @property
    def corrections(self) -> BlockCorrections:
        """Return what variants add to the base, by block and the variant's name."""
        return self.backend.corrections

    @property
    def maps(self) -> Mapping[int, TensorHolder]:
        """Return what readers add to the base, by depth."""
        return self.backend.maps


def preferred_device() -> torch.device:
    """Return the GPU if PyTorch finds one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def load_transformers(source: Path, dtype: torch.dtype) -> "PreTrainedModel":
    """Load a decoder as a `transformers` model. Raises `UnsupportedModelError`.

    Every parameter comes from the files, and every tensor in the files is a parameter. The model
    raises `UnsupportedModelError` for texts with tokens that it does not know.
    """
    checkpoint = open_checkpoint(source)
    outline = served_outline(checkpoint).model
    try:
        model: PreTrainedModel = type(outline).from_pretrained(
            None,
            config=checkpoint.config,
            state_dict={name: _Unread(checkpoint, name) for name in checkpoint.shapes},
            dtype=dtype,
        )
    except UnsupportedModelError:
        raise
    except Exception as error:  # of many types, where the configuration is wrong
        reason = line_of(error)
        raise UnsupportedModelError(f"cannot load the model in {source}: {reason}") from error
    model.generation_config = read_generation_config(checkpoint.folder, model.config)
    model.config.return_dict = True  # the pruners read outputs by name
    model.get_input_embeddings().register_forward_pre_hook(check_embedded)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class _Unread:
    """A parameter that `transformers` reads when it needs it, as it does those of safetensors."""

    checkpoint: ModelCheckpoint
    name: str

    def __getitem__(self, everything: object) -> Tensor:
        values = self.checkpoint.read(self.name)
        self.checkpoint.release(self.name)
        return values


def load_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder or a GGUF file. Raises `UnsupportedModelError`."""
    return read_tokenizer(description_folder(source))


def load_outline(source: Path) -> "PreTrainedModel":
    """Build a model's modules without weights, of any family that `transformers` knows.

    Raises `UnsupportedModelError`.
    """
    return outline_of(read_config(description_folder(source)), source)


def load_model(
    source: Path,
    name: str,
    precision: Precision = "auto",
    artefact: Artefact | None = None,
    context: int | None = None,
    device: torch.device = CPU,
) -> LoadedModel:
    """Load a model folder or a GGUF file into the serving layout, layer by layer.

    `auto` precision keeps that of the source. If most of it was quantised, matrices that are exact
    in 4 bits have 4, all others 8; else it is bf16 where the processor multiplies bf16, else fp32.
    On a GPU it is bf16. `context` limits the model's own maximum, in tokens. Packed weights are
    kept in the cache folder, and mapped from there the next time. Raises `UnsupportedModelError`,
    `MemoryEstimateError`, and `ArtefactError` if the artefact was built for another base.
    """
    if device != CPU and precision in BITS:
        raise UnsupportedModelError(
            f"weights {precision} are for the CPU; a GPU takes bf16 or fp32"
        )
    with stage("tokenizer"):
        tokenizer = load_tokenizer(source)
    with stage("weights"):
        found = _find_or_open(source, tokenizer, precision, artefact, device)
    facts = found.facts
    limit = limit_context(facts, context)
    backend = (
        _native(found, artefact, limit)
        if isinstance(found, PackedBase)
        else _in_pytorch(found, precision, artefact, limit, device)
    )
    shape = backend.weights.shape
    check_tokens(shape.vocab, tokenizer)
    specs = [base_spec(shape), *(() if artefact is None else artefact.variants)]
    readers = {} if artefact is None else artefact.readers
    return LoadedModel(
        name=name,
        fingerprint=facts.fingerprint,
        backend=backend,
        tokenizer=tokenizer,
        eos_token_ids=frozenset(facts.eos_token_ids),
        variants={spec.name: spec for spec in specs},
        artefact=None if artefact is None else replace(artefact, corrections={}, maps={}),
        sampling_defaults=facts.sampling_defaults,
        readers=readers,
        token_kinds=token_kinds(tokenizer, shape.vocab) if readers else None,
    )


def open_decoder(model: LoadedModel, slots: int, cache_dtype: torch.dtype | None = None) -> Decoder:
    """Return a decoder of a loaded model over a new cache of `slots` tokens.

    By default the cache has the dtype of the weights, bf16 for packed weights. int8 is possible
    where `Weights.supports_int8_cache` says so.
    """
    return model.backend.open_decoder(slots, cache_dtype or model.weights.dtype)


def _find_or_open(
    source: Path,
    tokenizer: PreTrainedTokenizerBase,
    precision: Precision,
    artefact: Artefact | None,
    device: torch.device,
) -> PackedBase | OpenedModel:
    """Return the packed base if the native kernels serve it, mapped or new; else the opened model.

    Raises `UnsupportedModelError`, `ArtefactError`, and `MemoryEstimateError` for a model that does
    not fit.
    """
    packs = device == CPU and precision in ("auto", *BITS) and _has_native_kernels()
    key = packed_key(source, precision, None if artefact is None else artefact.order)
    found = find_packed(key) if packs else None
    opened = found or OpenedModel(source, tokenizer)
    if isinstance(opened, PackedBase):
        check_packed_memory(opened, device)
    else:
        check_memory(opened.stored(), serving_on(device, precision), device)
    if artefact is not None:
        artefact.check_base(opened.facts.fingerprint)
    if not packs or not isinstance(opened, OpenedModel):
        return opened
    bits = BITS.get(precision) or opened.source_bits().bits
    if bits is None:
        return opened
    build = partial(_pack, opened, bits, precision == "auto", artefact)
    with large_blocks_go_back():
        return packed_base(key, build)


def _pack(opened: OpenedModel, bits: Bits, exact: bool, artefact: Artefact | None) -> PackedBase:
    """Pack a base; with `exact` only exact matrices have 4 bits."""
    context = min(opened.facts.longest, _PACKING_CONTEXT)
    packed = pack_weights(opened.base(torch.float32, True, artefact, context), bits, exact)
    add_head_screen(packed)
    return PackedBase(replace(packed, rope={}, context=0), opened.facts)


def _native(base: PackedBase, artefact: Artefact | None, context: int) -> NativeBackend:
    weights = base.for_context(context)
    if artefact is None:
        return NativeBackend(weights, {}, {})
    maps = pack_maps(weights.shape, artefact.maps, artefact.kv_order)
    return NativeBackend(weights, pack_corrections(weights, artefact.corrections), maps)


def _in_pytorch(
    opened: OpenedModel,
    precision: Precision,
    artefact: Artefact | None,
    context: int,
    device: torch.device,
) -> PyTorchBackend:
    bits = BITS.get(precision)
    if bits is not None:
        log.warning("no native kernels: PyTorch computes with the %d-bit values in fp32", bits)
        weights = round_weights(opened.base(torch.float32, True, artefact, context), bits)
    else:
        bf16 = precision == "bf16" or (precision == "auto" and _prefers_bf16(device))
        dtype = torch.bfloat16 if bf16 else torch.float32
        weights = convert_weights(opened.base(dtype, False, artefact, context), device)
    if artefact is None:
        return PyTorchBackend(weights, {}, {})
    maps = convert_maps(weights, artefact.maps, artefact.kv_order)
    return PyTorchBackend(weights, convert_corrections(weights, artefact.corrections), maps)


def _prefers_bf16(device: torch.device) -> bool:
    return device != CPU or multiplies_bf16()


def _has_native_kernels() -> bool:
    return native_library.is_available()
