"""The small files of a model folder: its configuration, its tokenizer, how answers are sampled."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)

from pruners.architecture import UnsupportedModelError
from server.engine.loading.model_files import check_code


def read_config(folder: Path) -> PretrainedConfig:
    """Read the configuration of any family. Raises `UnsupportedModelError`."""
    # Imported here: looking through all families takes a third of a second.
    from transformers import AutoConfig

    check_code(folder)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of many types, where a value is wrong
        reason = line_of(error)
        raise UnsupportedModelError(f"cannot read the model in {folder}: {reason}") from error


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder. Raises `UnsupportedModelError`.

    Where the folder names the class that reads `tokenizer.json` as it is, no other is looked for:
    that would read the model's configuration, whose import takes seconds.
    """
    check_code(folder)
    try:
        tokenizer: PreTrainedTokenizerBase = _tokenizer_class(folder).from_pretrained(
            folder, trust_remote_code=False
        )
    except Exception as error:  # of many types, where a file is damaged
        raise UnsupportedModelError(f"no tokenizer in {folder}: {line_of(error)}") from error
    return tokenizer


def _tokenizer_class(folder: Path) -> Any:  # noqa: ANN401
    """Return `TokenizersBackend` if `tokenizer_config.json` names it, else `AutoTokenizer`."""
    path = folder / "tokenizer_config.json"
    named = json.loads(path.read_bytes()) if path.exists() else {}
    if isinstance(named, dict) and named.get("tokenizer_class") == TokenizersBackend.__name__:
        return TokenizersBackend
    from transformers import AutoTokenizer

    return AutoTokenizer


def read_generation_config(folder: Path, config: PretrainedConfig) -> GenerationConfig:
    """Return how a folder's model samples, by itself or else by its configuration.

    Raises `UnsupportedModelError`.
    """
    try:
        if (folder / "generation_config.json").exists():
            return GenerationConfig.from_pretrained(folder)
        return GenerationConfig.from_model_config(config)
    except Exception as error:  # of many types, where the file is damaged
        raise UnsupportedModelError(
            f"cannot read generation_config.json in {folder}: {line_of(error)}"
        ) from error


def line_of(error: BaseException) -> str:
    """Return what is wrong, on one line."""
    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:
        return line_of(error.__cause__)
    if isinstance(error, KeyError):
        return f"nothing is known of {error}"
    text = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
