"""What a model folder holds, looked at before anything is loaded.

`transformers` reads every file that an index names and does not report what does not fit together.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from pruners.architecture import UnsupportedModelError

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
QUANTISED = "gguf_types.json"
"""In a converted folder: which parameters the GGUF file holds quantised, and in what type."""

_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 100_000_000  # bytes, as in the format's own reader


def check_code(source: Path) -> None:
    """Refuse a folder that brings Python code of its own, which is never run.

    Raises `UnsupportedModelError`.
    """
    for name in ("config.json", "tokenizer_config.json"):
        try:
            named = json.loads((source / name).read_bytes())
        except (OSError, ValueError):
            continue  # the function that reads it next reports the error
        code = named.get("auto_map") if isinstance(named, dict) else None
        if code:
            raise UnsupportedModelError(
                f"{source}: auto_map in {name} names code of the model's own, which is not run"
            )


def check_weights(source: Path) -> None:
    """Check that the safetensors files are whole and hold each tensor once, as their index says.

    Reads their headers only. Raises `UnsupportedModelError` with the file or tensor that is wrong.
    """
    if (source / _WEIGHTS).is_file():
        _header(source / _WEIGHTS)
        return
    if not (source / _INDEX).is_file():
        pickles = sorted(path.name for path in source.glob("*.bin"))
        why = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
        raise UnsupportedModelError(f"{source} holds no {_WEIGHTS}{why}")
    listed = _weight_map(source)
    in_files: dict[str, str] = {}
    for file in sorted(set(listed.values())):
        if Path(file).name != file or not (source / file).is_file():
            raise UnsupportedModelError(f"{source}: {_INDEX} names {file}, which is not there")
        for name in _header(source / file):
            if name in in_files:
                raise UnsupportedModelError(
                    f"{source}: tensor {name} is there twice, in {in_files[name]} and {file}"
                )
            in_files[name] = file
    if listed != in_files:
        wrong = sorted(dict(listed.items() ^ in_files.items()))
        raise UnsupportedModelError(f"{source}: {_INDEX} is wrong about {listing(wrong)}")


def check_report(source: Path, model: PreTrainedModel, info: dict[str, Any]) -> None:
    """Refuse a model that took something else than its parameters from the files.

    `info` is the loading report of `from_pretrained`. Raises `UnsupportedModelError`.
    """
    family = model.config.model_type
    for what, key in (
        ("missing", "missing_keys"),
        (f"not part of a '{family}'", "unexpected_keys"),
    ):
        if info[key]:
            raise UnsupportedModelError(f"{source}: tensors {what}: {listing(info[key])}")
    for name, in_file, expected in sorted(info["mismatched_keys"]):
        raise UnsupportedModelError(
            f"{source}: tensor {name} is {tuple(in_file)}, the configuration says {tuple(expected)}"
        )
    if info["error_msgs"]:
        raise UnsupportedModelError(f"{source}: {info['error_msgs'][0]}")
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if model.config.tie_word_embeddings and head.weight is not embedding.weight:
        raise UnsupportedModelError(
            f"{source}: tie_word_embeddings is true, but the tensor lm_head.weight is another"
        )


def quantised_types(source: Path) -> dict[str, str]:
    """Return the type of each parameter that a folder's GGUF file held quantised.

    Raises `UnsupportedModelError`.
    """
    if not (source / QUANTISED).is_file():
        return {}
    try:
        types = json.loads((source / QUANTISED).read_bytes())
        return {str(name): str(kind) for name, kind in types.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise UnsupportedModelError(f"{source}: {QUANTISED} is damaged") from error


def listing(names: Iterable[str], limit: int = 3) -> str:
    """Return the first names on one line, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - limit} more" if len(ordered) > limit else ""
    return ", ".join(ordered[:limit]) + more


def _weight_map(source: Path) -> dict[str, str]:
    try:
        listed = json.loads((source / _INDEX).read_bytes())["weight_map"]
        return {str(name): str(file) for name, file in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedModelError(f"{source}: {_INDEX} is damaged") from error


def _header(path: Path) -> list[str]:
    """Return the names of a safetensors file's tensors; check its length and their types."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = _once(json.loads(file.read(min(size, _MAX_HEADER)), object_pairs_hook=list))
        header.pop("__metadata__", None)
        tensors = {name: dict(about) for name, about in header.items()}
        end = max((about["data_offsets"][1] for about in tensors.values()), default=0)
        whole = path.stat().st_size == 8 + size + end
    except OSError as error:
        raise UnsupportedModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UnsupportedModelError(f"{path} is damaged: its header cannot be read") from error
    if not whole:
        raise UnsupportedModelError(f"{path} is damaged: it is not as long as its header says")
    for name, about in tensors.items():
        if about["dtype"] not in _FLOATS:
            raise UnsupportedModelError(f"{path}: tensor {name} is {about['dtype']}, not a float")
    return list(tensors)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    header = dict(pairs)
    if len(header) < len(pairs):
        raise ValueError("a name is there twice")
    return header
