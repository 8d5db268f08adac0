"""From a model's name to something that can be served."""

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassError
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
from pruners.correction import Correction
from pruners.support.fingerprint import fingerprint
from pruners.variant import Block, VariantSpec, base_spec
from server.engine.backends.native import library as native_library
from server.engine.backends.native.decoder import NativeDecoder, add_preview
from server.engine.backends.native.packed_corrections import PackedOwnParts, packed_own_parts
from server.engine.backends.native.packed_weights import (
    PackedWeights,
    pack_weights,
    round_weights,
)
from server.engine.backends.native.source_precision import source_bits
from server.engine.backends.pytorch.convert import check_served, take_weights
from server.engine.backends.pytorch.corrections import OwnParts, own_parts
from server.engine.backends.pytorch.decoder import Decoder
from server.engine.backends.pytorch.graph_decoder import GraphDecoder
from server.engine.backends.pytorch.weights import BaseWeights
from server.engine.cache.kv_cache import KVCache
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

AnyDecoder = Decoder | NativeDecoder
CPU = torch.device("cpu")


@dataclass(slots=True)
class LoadedModel:
    """A base in serving layout with its tokenizer and variants, of which `base` is the first."""

    name: str
    fingerprint: str
    weights: BaseWeights | PackedWeights
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    variants: dict[str, VariantSpec]
    own: OwnParts | PackedOwnParts
    artefact: Artefact | None
    sampling_defaults: dict[str, float]


def preferred_device() -> torch.device:
    """The GPU if PyTorch sees one."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def load_transformers(source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a decoder folder with `transformers`. Raises `UnsupportedModelError` for others.

    Every parameter comes from a safetensors file, and everything in the files is a parameter. The
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
    except Exception as error:  # of a wrong configuration it raises whatever it stumbles over
        raise UnsupportedModelError(f"cannot load the model in {source}: {_line(error)}") from error
    check_report(source, model, report)
    check_served(locate(model))
    model.config.return_dict = True  # by name is how whoever measures reads outputs
    model.get_input_embeddings().register_forward_pre_hook(check_embedded)
    return model.eval().requires_grad_(False)


def load_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """A model folder's tokenizer. Raises `UnsupportedModelError`."""
    check_code(source)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False
        )
    except Exception as error:  # of a damaged file it raises whatever it stumbles over
        raise UnsupportedModelError(f"no tokenizer in {source}: {_line(error)}") from error
    return tokenizer


def load_outline(source: Path) -> PreTrainedModel:
    """A model's structure without its weights, of any family that `transformers` knows.

    Raises `UnsupportedModelError`.
    """
    config = _config(source)
    masked = any("MaskedLM" in name for name in config.architectures or ())
    auto = AutoModelForMaskedLM if masked else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # of a wrong configuration it raises whatever it stumbles over
        raise UnsupportedModelError(f"no language model in {source}: {_line(error)}") from error


def _config(source: Path) -> PretrainedConfig:
    check_code(source)
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of a wrong value it raises whatever it stumbles over
        raise UnsupportedModelError(f"cannot read the model in {source}: {_line(error)}") from error


def load_model(
    source: Path,
    name: str,
    precision: Precision = "auto",
    artefact: Artefact | None = None,
    context: int | None = None,
    device: torch.device = CPU,
) -> LoadedModel:
    """Loads a model folder into the serving layout and checks that the artefact belongs to it.

    `auto` precision keeps what the source holds. If most of it was quantised, matrices that 4 bits
    hold exactly have 4, all others 8; else it is bf16 where the processor multiplies it natively,
    else fp32; on a GPU it is bf16. `context` limits the model's own maximum, in tokens. Raises
    `UnsupportedModelError` or `ArtefactError`.
    """
    model = load_transformers(source, torch.bfloat16 if precision == "bf16" else torch.float32)
    identity = fingerprint(model)
    decoder = locate(model)
    keep = precision == "auto"
    precision = _resolved(precision, decoder, quantised_types(source), device)
    if precision == "bf16" and model.dtype != torch.bfloat16:
        decoder = locate(load_transformers(source, torch.bfloat16))
    if artefact is not None:
        artefact.check_base(identity)
    tokenizer = load_tokenizer(source)
    check_tokens(model.config, tokenizer)
    ends = end_token_ids(source, model.config, tokenizer)
    defaults = sampling_defaults(model.generation_config)
    longest = model.config.max_position_embeddings
    weights = take_weights(
        decoder,
        None if artefact is None else artefact.ffn_order,
        None if artefact is None else artefact.kv_order,
        longest if context is None else min(longest, context),
    ).to(device)
    corrections = {} if artefact is None else artefact.corrections
    if precision in BITS:
        served, own = _served(weights, BITS[precision], keep, corrections)
    else:
        served, own = weights, own_parts(weights, corrections)
    base = base_spec(weights.shape)
    specs = [base, *(artefact.variants if artefact is not None else ())]
    return LoadedModel(
        name=name,
        fingerprint=identity,
        weights=served,
        tokenizer=tokenizer,
        eos_token_ids=ends,
        variants={spec.name: spec for spec in specs},
        own=own,
        artefact=None if artefact is None else replace(artefact, corrections={}),
        sampling_defaults=defaults,
    )


def open_decoder(
    model: LoadedModel, slots: int, cache_dtype: torch.dtype | None = None
) -> AnyDecoder:
    """The forward pass of a loaded model over a cache of `slots` tokens.

    `cache_dtype` is bf16 or int8 over packed weights, and that of the weights otherwise.
    """
    weights, dtype = model.weights, cache_dtype or model.weights.dtype
    recorded = weights.device != CPU
    cache = KVCache(weights.shape, slots, dtype, weights.device, spare=int(recorded))
    if isinstance(weights, PackedWeights):
        return NativeDecoder(weights, cache, cast(PackedOwnParts, model.own))
    kind = GraphDecoder if recorded else Decoder
    return kind(weights, cache, cast(OwnParts, model.own))


def _resolved(
    precision: Precision,
    decoder: LocatedModel,
    quantised: Collection[str],
    device: torch.device,
) -> Precision:
    """What `auto` stands for on this device."""
    if device != CPU and precision in BITS:
        raise UnsupportedModelError(
            f"weights {precision} are for the CPU; a GPU takes bf16 or fp32"
        )
    if precision != "auto":
        return precision
    if device != CPU:
        return "bf16"
    held = source_bits(decoder, quantised) if _native() else None
    if held is not None:
        return "int4" if held == 4 else "int8"
    return "bf16" if _bf16_is_native() else "fp32"


def _served(
    weights: BaseWeights,
    bits: int,
    keep: bool,
    corrections: Mapping[str, Mapping[Block, Correction]],
) -> tuple[BaseWeights | PackedWeights, OwnParts | PackedOwnParts]:
    """Weights and own parts in 4 or 8 bits."""
    if _native():
        packed = pack_weights(weights, bits, keep)
        add_preview(packed)
        return packed, packed_own_parts(packed, corrections)
    log.warning("no native kernels: PyTorch computes with the %d-bit values in fp32", bits)
    rounded = round_weights(weights, bits, keep)
    return rounded, own_parts(rounded, corrections)


def _native() -> bool:
    return native_library.library() is not None


def _bf16_is_native() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    return capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _line(error: BaseException) -> str:
    """What is wrong, on one line."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        return _line(error.__cause__)
    if isinstance(error, KeyError):
        return f"nothing is known of {error}"
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
