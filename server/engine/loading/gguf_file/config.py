"""The configuration that a GGUF file's metadata describes.

Every key is applied, or without effect at its value, or the file is refused with the key's name.
"""

import logging
from typing import Any

from transformers import PretrainedConfig

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.architectures import ARCHITECTURES
from server.engine.loading.gguf_file.common_keys import token_id
from server.engine.loading.gguf_file.keys import Keys
from server.engine.loading.gguf_file.parts import GgufModel
from server.engine.loading.model_files import listing

log = logging.getLogger(__name__)


def config_of(model: GgufModel) -> PretrainedConfig:
    """Return the `transformers` configuration. Raises `UnsupportedModelError`."""
    architecture = model.metadata.get("general.architecture")
    experts = model.metadata.get(f"{architecture}.expert_count")
    where = model.path.name
    if architecture not in ARCHITECTURES:
        what = "is a mixture of experts, which is not" if experts else "is not"
        raise UnsupportedModelError(
            f"{where}: GGUF architecture {architecture!r} {what} supported; "
            f"supported: {', '.join(ARCHITECTURES)}"
        )
    if experts:
        raise UnsupportedModelError(
            f"{where}: GGUF key {architecture}.expert_count = {experts!r}: "
            "a mixture of experts is not supported"
        )
    kind = model.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModelError(f"{where} holds no model: general.type = {kind!r}")
    keys = Keys(model.metadata, architecture)
    try:
        config = ARCHITECTURES[architecture](keys, model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{where}: {error}") from error
    return config


def end_token_ids(model: GgufModel) -> list[int]:
    """Return the tokens that end an answer: of text, of a turn and of a message."""
    vocab = int(model.tensors["token_embd.weight"].shape[1])
    ids = (
        token_id(model, f"tokenizer.ggml.{key}_token_id", vocab) for key in ("eos", "eot", "eom")
    )
    return list(dict.fromkeys(end for end in ids if end is not None))


_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def sampling_fields(model: GgufModel) -> dict[str, Any]:
    """Return how the model's makers advise to sample, as fields of a generation configuration.

    There are none if the file says nothing. What is advised and not served is logged.
    """
    prefix = "general.sampling."
    stated = {
        key.removeprefix(prefix): value
        for key, value in model.metadata.items()
        if key.startswith(prefix)
    }
    ignored = [f"{prefix}{key}" for key in stated if key not in _SAMPLING]
    if ignored:
        log.warning("%s: advice on sampling is ignored: %s", model.path.name, listing(ignored))
    fields = {field: stated[key] for key, field in _SAMPLING.items() if key in stated}
    return {"do_sample": True, **fields} if fields else {}
