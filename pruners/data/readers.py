"""Strict readers of the user's files: text, JSON, JSON lines and CSV, in UTF-8.

A file that is damaged or ambiguous is refused with a message that names the file and the line.
"""

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pruners.support.errors import UserError

_BOM = b"\xef\xbb\xbf"
_MAX_FIELD = 16 * 2**20
"""The greatest length of a CSV field, in characters."""
_HEAD_BYTES = 4096


class ReadError(UserError):
    """A file cannot be read. The message is one line: the file, the place in it, and why."""


def read_text(path: Path) -> str:
    """Return a file's text without a byte order mark and with `\\n` line ends.

    Raises `ReadError`.
    """
    _check_is_text(path)
    try:
        text = path.read_bytes().removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise ReadError(f"{path}: byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise _os_read_error(path, error) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path) -> Any:  # noqa: ANN401
    """Return the value of a JSON file. Raises `ReadError`, also for what `parse_json` refuses."""
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ReadError(f"{path}: {error}") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each line that is not blank. Raises `ReadError`."""
    _check_is_text(path)
    for number, line in read_raw_lines(path):
        try:
            yield number, parse_json(line.decode())
        except UnicodeDecodeError as error:
            raise ReadError(f"{path} line {number} is not UTF-8") from error
        except ValueError as error:
            raise ReadError(f"{path} line {number}: {error}") from error


def read_raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of each line that is not blank; only `\\n` ends a line.

    Raises `ReadError`.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                line = line.removeprefix(_BOM) if number == 1 else line
                if line.strip():
                    yield number, line
    except OSError as error:
        raise _os_read_error(path, error) from error


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line number and the fields by column name of each row below the header.

    The number is that of the row's last line. Raises `ReadError`, also for rows that have more or
    fewer fields than the header.
    """
    _check_is_text(path)
    csv.field_size_limit(_MAX_FIELD)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield from _rows(path, csv.reader(file, strict=True))
    except UnicodeDecodeError as error:
        raise ReadError(f"{path} line {_first_undecodable_line(path)} is not UTF-8") from error
    except OSError as error:
        raise _os_read_error(path, error) from error


def _rows(path: Path, reader: Any) -> Iterator[tuple[int, dict[str, str]]]:  # noqa: ANN401
    try:
        names = next((row for row in reader if row), None)
        if names is None:
            raise ReadError(f"{path} is empty")
        if len(set(names)) < len(names):
            raise ReadError(f"{path}: its header names a column twice")
        for row in reader:
            if row and len(row) != len(names):
                raise ReadError(
                    f"{path} line {reader.line_num}: {len(row)} fields under a header of "
                    f"{len(names)}; put a field that holds a comma in quotes"
                )
            if row:
                yield reader.line_num, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise ReadError(f"{path} line {reader.line_num}: {error}") from error


def parse_json(text: str) -> Any:  # noqa: ANN401
    """Return the value of a JSON text.

    Raises `ValueError` for invalid JSON, and for what JSON readers treat differently: duplicate
    keys, NaN, infinities, numbers too large for a float, lone surrogates, very deep nesting.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            object_pairs_hook=_unique_keys,
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("half of a surrogate pair in a string") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} (column {error.colno})") from error
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _finite_float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:24]} is too large a number")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return value


def _check_is_text(path: Path) -> None:
    """Raise `ReadError` if a file's beginning shows that it is not UTF-8 text."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise _os_read_error(path, error) from error
    if b"\0" in head or head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ReadError(f"{path} is not UTF-8 text (binary, or UTF-16?); save it as UTF-8")


def _first_undecodable_line(path: Path) -> int:
    for number, line in read_raw_lines(path):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return 0


def _os_read_error(path: Path, error: OSError) -> ReadError:
    return ReadError(f"cannot read {path}: {error.strerror or error}")
