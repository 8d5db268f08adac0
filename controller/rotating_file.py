"""A file of whole lines that is renamed when it is full, and readable by its owner alone."""

import os
import stat
from pathlib import Path

from pruners.support.errors import UserError

_MODE = 0o600
_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT
for _name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
    _FLAGS |= getattr(os, _name, 0)  # Windows has the last one alone


class AuditError(UserError):
    """An audit log that cannot be written. The message is one line."""


class RotatingFile:
    """Appends lines to a file. Before a line would exceed the size limit, the file is renamed.

    `path` becomes `path.1`, `path.1` becomes `path.2` and so on. One thread at a time may use it.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        """`keep` renamed files stay, the oldest with the highest number.

        Raises `AuditError` if the file cannot be written or is not a plain file.
        """
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise AuditError(f"cannot write the audit log {path}: it is no plain file")
            for old in (self._rotated_path(number) for number in range(1, keep + 1)):
                if old.is_file() and not old.is_symlink():
                    old.chmod(_MODE)
            self._file = self._open()
        except OSError as error:
            raise AuditError(f"cannot write the audit log {path}: {error.strerror}") from error

    def append(self, line: bytes) -> None:
        """Write a line whole or not at all. Raises `OSError`."""
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
        """Close the file."""
        os.close(self._file)

    def _rotate(self) -> None:
        if self.path.exists():  # it does not if opening the new file failed the last time
            for number in range(self._keep, 1, -1):
                if self._rotated_path(number - 1).exists():
                    os.replace(self._rotated_path(number - 1), self._rotated_path(number))
            os.replace(self.path, self._rotated_path(1))
        before, self._file = self._file, self._open()
        os.close(before)

    def _rotated_path(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _open(self) -> int:
        """Open the file and note its size. A line that a crash has cut off is ended.

        Return the file descriptor.
        """
        file = os.open(self.path, _FLAGS, _MODE)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(0, "it is no plain file")
            if hasattr(os, "fchmod"):
                os.fchmod(file, _MODE)
            self._size = status.st_size
            if self._size and not self._ends_with_newline():
                self._size += os.write(file, b"\n")
        except OSError:
            os.close(file)
            raise
        return file

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
