"""What a model folder holds, looked at before anything is loaded.

What does not fit together is refused by the name of the file or of the tensor.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruners.architecture import UnsupportedModelError

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 100_000_000  # bytes, as in the format's own reader


@dataclass(frozen=True, slots=True)
class FileTensor:
    """A tensor of a safetensors file: its type, such as `BF16`, and its shape."""

    file: Path
    type: str
    shape: tuple[int, ...]


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


def stored_tensors(source: Path) -> dict[str, FileTensor]:
    """Return the tensors of a folder's safetensors files, by name, from their headers.

    Checks that the files are whole and hold each tensor once, as their index says. Raises
    `UnsupportedModelError` with the file or tensor that is wrong.
    """
    if (source / _WEIGHTS).is_file():
        return _header(source / _WEIGHTS)
    if not (source / _INDEX).is_file():
        pickles = sorted(path.name for path in source.glob("*.bin"))
        why = f"; {pickles[0]} is a pickle, which is not read" if pickles else ""
        raise UnsupportedModelError(f"{source} holds no {_WEIGHTS}{why}")
    listed = _weight_map(source)
    found: dict[str, FileTensor] = {}
    for file in sorted(set(listed.values())):
        if Path(file).name != file or not (source / file).is_file():
            raise UnsupportedModelError(f"{source}: {_INDEX} names {file}, which is not there")
        for name, tensor in _header(source / file).items():
            if name in found:
                raise UnsupportedModelError(
                    f"{source}: tensor {name} is there twice, in {found[name].file.name} and {file}"
                )
            found[name] = tensor
    in_files = {name: tensor.file.name for name, tensor in found.items()}
    if listed != in_files:
        wrong = sorted(dict(listed.items() ^ in_files.items()))
        raise UnsupportedModelError(f"{source}: {_INDEX} is wrong about {listing(wrong)}")
    return found


def check_shapes(
    source: Path,
    stored: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    family: str,
) -> None:
    """Refuse a model whose files hold something else than its parameters.

    Both are shapes by the names of `transformers`. Raises `UnsupportedModelError`.
    """
    missing, extra = expected.keys() - stored.keys(), stored.keys() - expected.keys()
    for what, names in (("missing", missing), (f"not part of a '{family}'", extra)):
        if names:
            raise UnsupportedModelError(f"{source}: tensors {what}: {listing(names)}")
    for name, shape in sorted(stored.items()):
        if shape != expected[name]:
            raise UnsupportedModelError(
                f"{source}: tensor {name} is {shape}, the configuration says {expected[name]}"
            )


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


def _header(path: Path) -> dict[str, FileTensor]:
    """Return a safetensors file's tensors by name; check its length and their types."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = _once(json.loads(file.read(min(size, _MAX_HEADER)), object_pairs_hook=list))
        header.pop("__metadata__", None)
        tensors = {name: dict(about) for name, about in header.items()}
        end = max((about["data_offsets"][1] for about in tensors.values()), default=0)
        whole = path.stat().st_size == 8 + size + end
        found = {
            name: FileTensor(path, str(about["dtype"]), tuple(map(int, about["shape"])))
            for name, about in tensors.items()
        }
    except OSError as error:
        raise UnsupportedModelError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UnsupportedModelError(f"{path} is damaged: its header cannot be read") from error
    if not whole:
        raise UnsupportedModelError(f"{path} is damaged: it is not as long as its header says")
    for name, tensor in found.items():
        if tensor.type not in _FLOATS:
            raise UnsupportedModelError(f"{path}: tensor {name} is {tensor.type}, not a float")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    header = dict(pairs)
    if len(header) < len(pairs):
        raise ValueError("a name is there twice")
    return header
