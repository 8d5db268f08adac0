"""From a model's name to something that can be served."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruners.architecture import SERVED_FAMILIES, LocatedModel, UnsupportedModelError, locate
from pruners.artefact.folder import Artefact
from pruners.reading.reader import PromptReader, token_kinds
from pruners.support.fingerprint import fingerprint
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
from server.engine.backends.native.source_precision import source_bits
from server.engine.backends.pytorch.backend import PyTorchBackend
from server.engine.backends.pytorch.convert import check_served, convert_weights
from server.engine.backends.pytorch.corrections import convert_corrections
from server.engine.backends.pytorch.kv_maps import convert_maps
from server.engine.backends.pytorch.weights import PyTorchWeights
from server.engine.loading.generation_config import (
    check_embedded,
    check_padding,
    check_tokens,
    end_token_ids,
    sampling_defaults,
)
from server.engine.loading.model_files import (
    check_code,
    check_report,
    check_weights,
    quantised_types,
)
from server.engine.precision import BITS, Precision

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


@dataclass(slots=True)
class LoadedModel:
    """A base in serving layout with its tokenizer and its variants, of which `base` is the first.

    `fingerprint` identifies the base's parameters. `sampling_defaults` are the model's own sampling
    parameters. `readers` are by name; `token_kinds` int8 `[vocab]` are those of tokens, if
    there are readers. The corrections and the maps of `artefact` are in `backend`
    only.
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


def load_transformers(source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load the folder of a decoder with `transformers`. Raises `UnsupportedModelError`.

    Every parameter comes from a safetensors file, and every tensor in the files is a parameter. The
    model raises `UnsupportedModelError` for texts with tokens that it does not know.
    """
    config = _config(source)
    if config.model_type not in SERVED_FAMILIES:
        known = ", ".join(SERVED_FAMILIES)
        raise UnsupportedModelError(
            f"model family '{config.model_type}' is not supported; supported: {known}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError("config.json: quantization_config is not supported")
    if getattr(config, "transformers_weights", None) is not None:
        raise UnsupportedModelError("config.json: transformers_weights is not supported")
    check_padding(config)
    check_weights(source)
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused by name
            output_loading_info=True,
        )
    except Exception as error:  # of many types, where the configuration is wrong
        raise UnsupportedModelError(f"cannot load the model in {source}: {_line(error)}") from error
    check_report(source, model, report)
    check_served(locate(model))
    model.config.return_dict = True  # the pruners read outputs by name
    model.get_input_embeddings().register_forward_pre_hook(check_embedded)
    return model.eval().requires_grad_(False)


def load_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model folder. Raises `UnsupportedModelError`."""
    check_code(source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except Exception as error:  # of many types, where a file is damaged
        raise UnsupportedModelError(f"no tokenizer in {source}: {_line(error)}") from error
    return tokenizer


def load_outline(source: Path) -> PreTrainedModel:
    """Build a model's modules without weights, of any family that `transformers` knows.

    Raises `UnsupportedModelError`.
    """
    config = _config(source)
    masked = any("MaskedLM" in name for name in config.architectures or ())
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # of many types, where the configuration is wrong
        raise UnsupportedModelError(f"no language model in {source}: {_line(error)}") from error


def _config(source: Path) -> PretrainedConfig:
    check_code(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of many types, where a value is wrong
        raise UnsupportedModelError(f"cannot read the model in {source}: {_line(error)}") from error


def load_model(
    source: Path,
    name: str,
    precision: Precision = "auto",
    artefact: Artefact | None = None,
    context: int | None = None,
    device: torch.device = CPU,
) -> LoadedModel:
    """Load a model folder into the serving layout. Raises `UnsupportedModelError`.

    `auto` precision keeps that of the source. If most of it was quantised, matrices that are exact
    in 4 bits have 4, all others 8; else it is bf16 where the processor multiplies bf16, else fp32.
    On a GPU it is bf16. `context` limits the model's own maximum, in tokens. Raises
    `ArtefactError` if the artefact was built for another base.
    """
    model = load_transformers(source, torch.bfloat16 if precision == "bf16" else torch.float32)
    identity = fingerprint(model)
    located = locate(model)
    resolved = _resolve_precision(precision, located, quantised_types(source), device)
    if resolved == "bf16" and model.dtype != torch.bfloat16:
        located = locate(load_transformers(source, torch.bfloat16))
    if artefact is not None:
        artefact.check_base(identity)
    tokenizer = load_tokenizer(source)
    check_tokens(model.config, tokenizer)
    ends = end_token_ids(source, model.config, tokenizer)
    defaults = sampling_defaults(model.generation_config)
    longest = model.config.max_position_embeddings
    weights = convert_weights(
        located,
        None if artefact is None else artefact.ffn_order,
        None if artefact is None else artefact.kv_order,
        longest if context is None else min(longest, context),
    ).to(device)
    specs = [base_spec(weights.shape), *(() if artefact is None else artefact.variants)]
    readers = {} if artefact is None else artefact.readers
    return LoadedModel(
        name=name,
        fingerprint=identity,
        backend=_open_backend(weights, resolved, precision == "auto", artefact),
        tokenizer=tokenizer,
        eos_token_ids=ends,
        variants={spec.name: spec for spec in specs},
        artefact=None if artefact is None else replace(artefact, corrections={}, maps={}),
        sampling_defaults=defaults,
        readers=readers,
        token_kinds=token_kinds(tokenizer, weights.shape.vocab) if readers else None,
    )


def open_decoder(model: LoadedModel, slots: int, cache_dtype: torch.dtype | None = None) -> Decoder:
    """Return a decoder of a loaded model over a new cache of `slots` tokens.

    By default the cache has the dtype of the weights, bf16 for packed weights. int8 is possible
    where `Weights.supports_int8_cache` says so.
    """
    return model.backend.open_decoder(slots, cache_dtype or model.weights.dtype)


def _resolve_precision(
    precision: Precision,
    located: LocatedModel,
    quantised: Collection[str],
    device: torch.device,
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
    bits = source_bits(located, quantised) if _has_native_kernels() else None
    if bits is not None:
        return "int4" if bits == 4 else "int8"
    return "bf16" if _multiplies_bf16() else "fp32"


def _open_backend(
    weights: PyTorchWeights, precision: Precision, exact: bool, artefact: Artefact | None
) -> ModelBackend:
    """Return the backend for a precision; with `exact` only exact matrices have 4 bits."""
    corrections = {} if artefact is None else artefact.corrections
    maps, order = ({}, None) if artefact is None else (artefact.maps, artefact.kv_order)

    def in_pytorch(base: PyTorchWeights) -> PyTorchBackend:
        converted = convert_maps(base, maps, order)
        return PyTorchBackend(base, convert_corrections(base, corrections), converted)

    if precision not in BITS:
        return in_pytorch(weights)
    bits = BITS[precision]
    if _has_native_kernels():
        packed = pack_weights(weights, bits, exact)
        add_head_screen(packed)
        packed_maps = pack_maps(packed.shape, maps, order)
        return NativeBackend(packed, pack_corrections(packed, corrections), packed_maps)
    log.warning("no native kernels: PyTorch computes with the %d-bit values in fp32", bits)
    return in_pytorch(round_weights(weights, bits, exact))


def _has_native_kernels() -> bool:
    return native_library.is_available()


def _multiplies_bf16() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _line(error: BaseException) -> str:
    """Return what is wrong, on one line."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        return _line(error.__cause__)
    if isinstance(error, KeyError):
        return f"nothing is known of {error}"
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
