"""Open a GGUF model, which may be split over several files."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruners.architecture import UnsupportedModelError
from server.engine.loading.gguf_file.header import GgufHeader, length
from server.engine.loading.model_files import listing

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class GgufModel:
    """Metadata and tensors of all parts.

    Of arrays of the tokenizer the metadata has the lengths; `array` reads them.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Any]  # `gguf.ReaderTensor` by name
    _header: GgufHeader

    def array(self, key: str) -> list[Any]:
        """Return the elements of an array of the metadata; none if the file does not have it.

        Raises `UnsupportedModelError` if it is damaged.
        """
        try:
            return self._header.array(key)
        except ValueError as error:
            raise UnsupportedModelError(f"{self.path.name}: {key} is damaged: {error}") from error


def part_paths(path: Path) -> list[Path]:
    """Return the files of the model that `path` is one file of, the first part first.

    Raises `UnsupportedModelError` with the names of the parts that are not there.
    """
    named = _SPLIT.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named["count"])
    names = [f"{named['stem']}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UnsupportedModelError(
            f"{path.name} is one of {count} parts; not found beside it: {listing(missing)}"
        )
    return [path.parent / name for name in names]


def open_gguf(path: Path) -> GgufModel:
    """Read the metadata and the list of tensors of a GGUF model, all parts together.

    Raises `UnsupportedModelError` if a part is missing, damaged or does not belong to the others.
    """
    paths = part_paths(path)
    readers = [_reader(part) for part in paths]
    metadata = _metadata(paths[0], readers[0])
    tensors: dict[str, Any] = {}
    for index, (part, reader) in enumerate(zip(paths, readers, strict=True)):
        _check_part(part, reader, index, len(paths))
        for tensor in reader.tensors:
            if tensor.name in tensors:
                raise UnsupportedModelError(f"{part.name}: tensor {tensor.name} is there twice")
            tensors[tensor.name] = tensor
    total = metadata.get("split.tensors.count")
    if total is not None and total != len(tensors):
        raise UnsupportedModelError(
            f"{path.name}: split.tensors.count is {total}, the parts hold {len(tensors)} tensors"
        )
    return GgufModel(paths[0], metadata, tensors, readers[0])


def _reader(path: Path) -> GgufHeader:
    try:
        reader = GgufHeader(path)
    except OSError as error:
        raise UnsupportedModelError(f"cannot read {path.name}: {error.strerror}") from error
    except Exception as error:  # of many types, where the file is damaged
        reason = str(error).strip("'\"") or type(error).__name__
        raise UnsupportedModelError(
            f"cannot read {path.name}, which is damaged or cut off: {reason}"
        ) from error
    if reader.byte_order == "S":
        raise UnsupportedModelError(f"{path.name}: files of big-endian numbers are not supported")
    return reader


def _check_part(path: Path, reader: GgufHeader, index: int, count: int) -> None:
    fields = reader.fields
    stated = int(fields["split.count"].contents()) if "split.count" in fields else 0
    number = int(fields["split.no"].contents()) if "split.no" in fields else 0
    if max(stated, 1) != count:
        raise UnsupportedModelError(
            f"{path.name}: split.count is {stated}, but {count} such files are named after each "
            "other; the parts of a split file keep the names NAME-00001-of-0000N.gguf"
        )
    if number != index:
        raise UnsupportedModelError(f"{path.name}: split.no is {number}, its name says {index}")


def _metadata(path: Path, reader: GgufHeader) -> dict[str, Any]:
    found = {}
    for key, field in reader.fields.items():
        count = length(field) if key.startswith("tokenizer.ggml.") else None
        try:
            found[key] = reader.value(key) if count is None else count
        except ValueError as error:
            raise UnsupportedModelError(f"{path.name}: {key} is damaged: {error}") from error
    return found
