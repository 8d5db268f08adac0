"""From a model's name to something that can be served."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pruners.architecture import LocatedModel, UnsupportedModelError
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
from server.engine.backends.matrix import Parameters
from server.engine.backends.native import library as native_library
from server.engine.backends.native.backend import NativeBackend
from server.engine.backends.native.decoder import add_head_screen
from server.engine.backends.native.packed_corrections import pack_corrections
from server.engine.backends.native.packed_maps import pack_maps
from server.engine.backends.native.packed_weights import pack_weights, round_weights
from server.engine.backends.native.source_precision import source_bits
from server.engine.backends.pytorch.backend import PyTorchBackend
from server.engine.backends.pytorch.convert import ConvertedBase, convert_weights
from server.engine.backends.pytorch.corrections import convert_corrections
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.backends.pytorch.weights import PyTorchWeights
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
    end_token_ids,
    sampling_defaults,
)
from server.engine.loading.outline import outline_of, served_outline
from server.engine.loading.parameters import CheckpointParameters
from server.engine.precision import BITS, Precision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


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
    On a GPU it is bf16. `context` limits the model's own maximum, in tokens. Raises
    `UnsupportedModelError`, and `ArtefactError` if the artefact was built for another base.
    """
    checkpoint = open_checkpoint(source)
    located = served_outline(checkpoint)
    identity = checkpoint.fingerprint()
    if artefact is not None:
        artefact.check_base(identity)
    config, tokenizer = checkpoint.config, checkpoint.tokenizer()
    check_tokens(config.vocab_size, tokenizer)
    ends = end_token_ids(checkpoint.folder, config, tokenizer)
    defaults = sampling_defaults(read_generation_config(checkpoint.folder, config))
    coded = CheckpointParameters(located.model, checkpoint, torch.float32, coded=True)
    resolved = _resolve_precision(precision, located, coded, device)
    dtype = torch.bfloat16 if resolved == "bf16" else torch.float32
    plain = CheckpointParameters(located.model, checkpoint, dtype, coded=False)
    base = ConvertedBase(
        located,
        coded if resolved in BITS else plain,
        None if artefact is None else artefact.ffn_order,
        None if artefact is None else artefact.kv_order,
        limit_context(located, context),
    )
    specs = [base_spec(base.shape), *(() if artefact is None else artefact.variants)]
    readers = {} if artefact is None else artefact.readers
    return LoadedModel(
        name=name,
        fingerprint=identity,
        backend=_open_backend(base, resolved, precision == "auto", artefact, device),
        tokenizer=tokenizer,
        eos_token_ids=ends,
        variants={spec.name: spec for spec in specs},
        artefact=None if artefact is None else replace(artefact, corrections={}, maps={}),
        sampling_defaults=defaults,
        readers=readers,
        token_kinds=token_kinds(tokenizer, base.shape.vocab) if readers else None,
    )


def open_decoder(model: LoadedModel, slots: int, cache_dtype: torch.dtype | None = None) -> Decoder:
    """Return a decoder of a loaded model over a new cache of `slots` tokens.

    By default the cache has the dtype of the weights, bf16 for packed weights. int8 is possible
    where `Weights.supports_int8_cache` says so.
    """
    return model.backend.open_decoder(slots, cache_dtype or model.weights.dtype)


def _resolve_precision(
    precision: Precision, located: LocatedModel, parameters: Parameters, device: torch.device
) -> Precision:
    """Return what `auto` stands for on this device; any other precision as it is."""
    if device != CPU and precision in BITS:
        raise UnsupportedModelError(
            f"weights {precision} are for the CPU; a GPU takes bf16 or fp32"
        )
    if precision != "auto":
        return precision
    if device != CPU:
        return "bf16"
    bits = source_bits(located, parameters).bits if _has_native_kernels() else None
    if bits is not None:
        return "int4" if bits == 4 else "int8"
    return "bf16" if multiplies_bf16() else "fp32"


def _open_backend(
    base: ConvertedBase,
    precision: Precision,
    exact: bool,
    artefact: Artefact | None,
    device: torch.device,
) -> ModelBackend:
    """Return the backend for a precision; with `exact` only exact matrices have 4 bits."""
    corrections = {} if artefact is None else artefact.corrections
    maps, order = ({}, None) if artefact is None else (artefact.maps, artefact.kv_order)

    def in_pytorch(weights: PyTorchWeights) -> PyTorchBackend:
        converted = convert_maps(weights, maps, order)
        return PyTorchBackend(weights, convert_corrections(weights, corrections), converted)

    if precision not in BITS:
        return in_pytorch(convert_weights(base, device))
    bits = BITS[precision]
    if _has_native_kernels():
        packed = pack_weights(base, bits, exact)
        add_head_screen(packed)
        packed_maps = pack_maps(packed.shape, maps, order)
        return NativeBackend(packed, pack_corrections(packed, corrections), packed_maps)
    log.warning("no native kernels: PyTorch computes with the %d-bit values in fp32", bits)
    return in_pytorch(round_weights(base, bits, exact))


def _has_native_kernels() -> bool:
    return native_library.is_available()


def multiplies_bf16() -> bool:
    """Return whether the processor multiplies bf16 by itself."""
    capability = torch.backends.cpu.get_cpu_capability()
    return capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
