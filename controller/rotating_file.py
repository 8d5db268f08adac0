"""A file of lines that is renamed when it is full: whole lines, for its owner's eyes alone."""

import os
import stat
from pathlib import Path

from pruners.support.errors import UserError

_MODE = 0o600
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class AuditError(UserError):
    """The audit log cannot be written. One clear line."""


class RotatingFile:
    """Appends lines to `path`; before one would pass `max_bytes`, the file becomes `path.1`.

    `keep` such files stay, the oldest with the highest number. Each is readable by its owner
    alone. Raises `AuditError` if the file cannot be written or is not a plain file.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise AuditError(f"cannot write the audit log {path}: it is no plain file")
            for old in (self._old(number) for number in range(1, keep + 1)):
                if old.is_file() and not old.is_symlink():
                    old.chmod(_MODE)
            self._file = self._opened()
        except OSError as error:
            raise AuditError(f"cannot write the audit log {path}: {error.strerror}") from error

    def append(self, line: bytes) -> None:
        """Writes a line whole or not at all. Raises `OSError`."""
        if self._size and self._size + len(line) > self._max_bytes:
            self._rotate()
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        finally:
            if written < len(line):
                os.ftruncate(self._file, self._size)
        self._size += len(line)

    def close(self) -> None:
        """No more lines."""
        os.close(self._file)

    def _rotate(self) -> None:
        if self.path.exists():  # not if the new file could not be opened the last time
            for number in range(self._keep, 1, -1):
                if self._old(number - 1).exists():
                    os.replace(self._old(number - 1), self._old(number))
            os.replace(self.path, self._old(1))
        before, self._file = self._file, self._opened()
        os.close(before)

    def _old(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _opened(self) -> int:
        """Its size is noted; what a crash has cut off at its end gets an end of line."""
        file = os.open(self.path, _FLAGS, _MODE)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(0, "it is no plain file")
            os.fchmod(file, _MODE)
            self._size = found.st_size
            if self._size and not self._ends_whole():
                self._size += os.write(file, b"\n")
        except OSError:
            os.close(file)
            raise
        return file

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
