"""From a model's name to something that can be served."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pruners.architecture import SERVED_FAMILIES, UnsupportedModelError, locate
from pruners.artefact import Artefact, ArtefactError
from pruners.fingerprint import fingerprint
from pruners.variant import VariantSpec, base_spec
from server.engine.corrections import OwnParts, own_parts
from server.engine.weights import BaseWeights, take_weights

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(slots=True)
class LoadedModel:
    """A base in serving layout with its tokenizer and variants, of which `base` is the first."""

    name: str
    fingerprint: str
    weights: BaseWeights
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    variants: dict[str, VariantSpec]
    own: OwnParts
    artefact: Artefact | None
    sampling_defaults: dict[str, float]


def load_transformers(source: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Loads a decoder folder with `transformers`. Raises `UnsupportedModelError` for others."""
    config = _config(source)
    if config.model_type not in SERVED_FAMILIES:
        known = ", ".join(SERVED_FAMILIES)
        raise UnsupportedModelError(
            f"model family '{config.model_type}' is not supported; supported: {known}"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(f"cannot load the model in {source}: {_line(error)}") from error
    return model.eval().requires_grad_(False)


def load_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """A model folder's tokenizer. Raises `UnsupportedModelError`."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
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
            return auto.from_config(config)
    except ValueError as error:
        raise UnsupportedModelError(f"no language model in {source}: {_line(error)}") from error


def _config(source: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise UnsupportedModelError(f"cannot read the model in {source}: {_line(error)}") from error


def load_model(
    source: Path, name: str, dtype: torch.dtype, artefact: Artefact | None, context: int | None
) -> LoadedModel:
    """Loads a model folder into the serving layout and checks that the artefact belongs to it.

    `context` limits the model's own maximum, in tokens. Raises `UnsupportedModelError` or
    `ArtefactError`.
    """
    model = load_transformers(source, dtype)
    decoder = locate(model)
    identity = fingerprint(model)
    if artefact is not None and artefact.fingerprint != identity:
        raise ArtefactError(
            f"the artefact was built for '{artefact.model_name}' ({artefact.fingerprint}), not for "
            f"this model ({identity}); build one with `trimtab build`"
        )
    longest = model.config.max_position_embeddings
    eos = model.generation_config.eos_token_id or []
    defaults = {
        key: value
        for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        if (value := getattr(model.generation_config, key, None)) is not None
    }
    if getattr(model.generation_config, "do_sample", None) is not True:
        defaults = {}
    weights = take_weights(
        decoder,
        None if artefact is None else artefact.ffn_order,
        None if artefact is None else artefact.kv_order,
        min(longest, context or longest),
    )
    base = base_spec(weights.shape)
    specs = [base, *(artefact.variants if artefact is not None else ())]
    return LoadedModel(
        name=name,
        fingerprint=identity,
        weights=weights,
        tokenizer=load_tokenizer(source),
        eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos),
        variants={spec.name: spec for spec in specs},
        own=own_parts(weights, {} if artefact is None else artefact.corrections),
        artefact=None if artefact is None else replace(artefact, corrections={}),
        sampling_defaults=defaults,
    )


def default_dtype() -> torch.dtype:
    """bf16 where the processor multiplies it natively, else fp32."""
    if torch.cuda.is_available():
        return torch.bfloat16
    capability = torch.backends.cpu.get_cpu_capability()
    native = capability == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def _line(error: Exception) -> str:
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
