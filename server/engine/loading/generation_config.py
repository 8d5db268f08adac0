"""Reads from a model folder how answers end and are sampled, from every file that says it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from pruners.architecture import UnsupportedModelError
from server.engine.admission import InvalidRequestError, check_sampling
from server.engine.sampling import SamplingParams

log = logging.getLogger(__name__)

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def end_token_ids(
    folder: Path, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Return every id that ends an answer: those of both configurations and the tokenizer's.

    The default of the family's configuration class counts only if none of these has an id. Ids
    outside the vocabulary are dropped with a warning: no model writes them. Raises
    `UnsupportedModelError` for what is no id.
    """
    by_source = {
        name: _ids(name, _read(folder / name).get("eos_token_id"))
        for name in ("config.json", "generation_config.json")
    }
    by_source["the tokenizer"] = _ids("the tokenizer", tokenizer.eos_token_id)
    if not any(by_source.values()):
        by_source["the model's family"] = _ids("the model's family", config.eos_token_id)
    ends: set[int] = set()
    for name, ids in by_source.items():
        for token in ids:
            if 0 <= token < config.vocab_size:
                ends.add(token)
            else:
                log.warning(
                    "%s: EOS id %d is not among the model's %d tokens and is ignored",
                    name,
                    token,
                    config.vocab_size,
                )
    return frozenset(ends)


def sampling_defaults(generation: GenerationConfig | None) -> dict[str, float]:
    """Return the sampling parameters of a model, if its configuration asks for sampling.

    Raises `UnsupportedModelError` for one that no request could have.
    """
    if getattr(generation, "do_sample", None) is not True:
        return {}
    values = {name: getattr(generation, name, None) for name in _SAMPLING}
    defaults = {name: value for name, value in values.items() if value is not None}
    for name, value in defaults.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UnsupportedModelError(f"generation_config.json: {name} {value!r} is no number")
    if "top_k" in defaults:
        defaults["top_k"] = max(0, int(defaults["top_k"]))  # some files have -1 for "off"
    try:
        check_sampling(SamplingParams(**defaults))
    except InvalidRequestError as error:
        raise UnsupportedModelError(f"generation_config.json: {error}") from error
    return defaults


def check_tokens(size: int, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare a tokenizer with a model of `size` tokens: one warning if it knows others.

    Raises `UnsupportedModelError` if it puts such a token into every prompt.
    """
    for token in tokenizer("").input_ids:
        if token >= size:
            raise UnsupportedModelError(
                f"the tokenizer adds token {token} ('{tokenizer.convert_ids_to_tokens(token)}') to "
                f"every prompt, but the model knows {size} tokens"
            )
    plain = tokenizer.vocab_size
    added = sum(token >= max(size, plain) for token in tokenizer.added_tokens_decoder)
    behind = max(plain - size, 0) + added
    if behind:
        log.warning(
            "the tokenizer knows %d tokens behind the model's %d; prompts with them are refused",
            behind,
            size,
        )


def check_padding(config: PretrainedConfig) -> None:
    """Raise `UnsupportedModelError` for a padding id with which no embedding can be built."""
    token, size = config.pad_token_id, config.vocab_size
    if token is not None and not -size <= token < size:
        raise UnsupportedModelError(
            f"config.json: pad_token_id {token} is not among the model's {size} tokens"
        )


def check_embedded(embedding: nn.Embedding, inputs: tuple[Tensor, ...]) -> None:
    """Raise `UnsupportedModelError` for tokens that an embedding does not have.

    It is a forward pre-hook; `inputs` are int64 tokens `[rows, length]`.
    """
    token, size = int(inputs[0].max()), embedding.num_embeddings
    if token >= size:
        raise UnsupportedModelError(
            f"the text holds token {token} of the tokenizer, but the model knows {size} tokens"
        )


def _ids(name: str, value: object) -> list[int]:
    """Return the ids of an `eos_token_id`, which may be None, an id or a list of ids."""
    ids: list[int] = []
    for token in value if isinstance(value, list) else [] if value is None else [value]:
        if isinstance(token, bool) or not isinstance(token, int):
            raise UnsupportedModelError(f"{name}: eos_token_id {token!r} is no id")
        ids.append(token)
    return ids


def _read(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModelError(f"cannot read {path}: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModelError(f"{path} holds no JSON object")
    return content
