"""Reads the header of a GGUF file: the `gguf` package's reader, with long arrays read at once.

The package makes an object of each element, which takes seconds for a vocabulary.
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFValueType
from gguf.gguf_reader import ReaderField

from server.engine.loading.gguf_file.keys import Value

_LENGTH = struct.Struct("<Q")


class GgufHeader(GGUFReader):
    """A file of which the header was read. `value` and `array` read what a key holds."""

    def value(self, key: str) -> Value:
        """Return what a key holds: a number, a string or a list of them."""
        array = self.fields[key].types[0] == GGUFValueType.ARRAY
        return self.array(key) if array else self.fields[key].contents()

    def array(self, key: str) -> list[Any]:
        """Return the elements of an array; none if there is no such key."""
        if key not in self.fields:
            return []
        field = self.fields[key]
        if field.types[-1] != GGUFValueType.STRING:
            return list(field.parts[-1].tolist())
        raw = field.parts[-1].tobytes()
        return [raw[at:end].decode() for at, end in _strings(raw, 0, _count(field))]

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[Any], list[int], list[GGUFValueType]]:
        if raw_type != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        start, item = orig_offs + 12, GGUFValueType(int(kind[0]))
        if item in self.gguf_scalar_to_np:
            values = self._get(start, self.gguf_scalar_to_np[item], int(count[0]))
            if len(values) < count[0]:
                raise ValueError("an array is longer than the file")
        elif item == GGUFValueType.STRING:
            strings = _strings(memoryview(self.data), start, int(count[0]))
            end = max((end for _, end in strings), default=start)
            values = self._get(start, np.uint8, end - start)
        else:
            raise ValueError(f"arrays of {item.name} are not read")
        parts = [kind, count, values]
        return 12 + int(values.nbytes), parts, [2], [GGUFValueType.ARRAY, item]


def length(field: ReaderField) -> int | None:
    """Return the number of elements of an array; None for other fields."""
    return _count(field) if field.types[0] == GGUFValueType.ARRAY else None


def _count(field: ReaderField) -> int:
    return int(field.parts[-2][0])


def _strings(raw: memoryview | bytes, at: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield where each of `count` strings begins and ends."""
    size = len(raw)
    for _ in range(count):
        (length_of_string,) = _LENGTH.unpack_from(raw, at)
        at, end = at + 8, at + 8 + length_of_string
        if end > size:
            raise ValueError("a string is longer than the file")
        yield at, end
        at = end
