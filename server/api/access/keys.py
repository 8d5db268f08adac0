"""API keys: read from settings and a file, kept as hashes, and compared in constant time."""

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pruners.support.errors import UserError
from server.api.access.scopes import Scope

HASH_PREFIX = "sha256:"
"""What a hash that is given instead of its key begins with; 64 hexadecimal digits follow."""
MAX_KEYS = 1000
MAX_FILE_BYTES = 2**20
ALL_SCOPES = frozenset({Scope.INFER, Scope.METRICS, Scope.ADMIN})
_CLIENT_DIGITS = 12


class ApiKeyError(UserError):
    """A key or a file of keys is wrong. The message is one line and never holds a key."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key that is accepted: its SHA-256, and what it opens.

    `client` names its holder in logs and in fair shares: the beginning of the hash.
    """

    digest: bytes
    scopes: frozenset[Scope]

    @property
    def client(self) -> str:
        """The short name of whoever sends the key."""
        return self.digest.hex()[:_CLIENT_DIGITS]

    def opens(self, scope: Scope) -> bool:
        """Whether the key opens routes of a scope. `admin` opens everything."""
        return scope is Scope.PUBLIC or scope in self.scopes or Scope.ADMIN in self.scopes


class KeyRing:
    """All keys that a server accepts. An empty ring means that no key is needed."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, presented: bytes) -> ApiKey | None:
        """Return the key that a client sent, if it is one of the ring.

        All hashes are compared, each in constant time, so that the time tells nothing.
        """
        digest = hashlib.sha256(presented).digest()
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found


def open_key_ring(hashed: Iterable[str], file: Path | None) -> KeyRing:
    """Return the keys of the settings, which open everything, with those of a file.

    `hashed` are results of `hashed_key`. Raise `ApiKeyError`.
    """
    keys = [ApiKey(bytes.fromhex(one.removeprefix(HASH_PREFIX)), ALL_SCOPES) for one in hashed]
    if file is not None:
        keys += _read_file(file)
    if len(keys) > MAX_KEYS:
        raise ApiKeyError(f"there are {len(keys)} API keys; at most {MAX_KEYS} are possible")
    if len({key.digest for key in keys}) < len(keys):
        raise ApiKeyError("an API key is given twice")
    return KeyRing(keys)


def hashed_key(text: str) -> str:
    """Return `sha256:HEX` of a key, or of the hash that is given instead. Raise `ValueError`."""
    if text.lower().startswith(HASH_PREFIX):
        digits = text[len(HASH_PREFIX) :].lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digits):
            raise ValueError(f"a hash is {HASH_PREFIX} and 64 hexadecimal digits")
        return HASH_PREFIX + digits
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("must not be empty, nor hold space at its ends or control characters")
    return HASH_PREFIX + hashlib.sha256(text.encode()).hexdigest()


def _read_file(file: Path) -> list[ApiKey]:
    """Return the keys of a file: on each line a key or its hash, then its scopes.

    Empty lines, and those that begin with `#`, are skipped. A file without a key is an error: it
    would leave the server open.
    """
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ApiKeyError(f"api_key_file: {file} is larger than {MAX_FILE_BYTES} bytes")
        lines = content.decode().splitlines()
    except OSError as error:
        raise ApiKeyError(f"api_key_file: cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ApiKeyError(f"api_key_file: {file} is not text in UTF-8") from error
    keys = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                keys.append(_parse_line(line))
            except ValueError as error:
                raise ApiKeyError(f"api_key_file: line {number} of {file}: {error}") from error
    if not keys:
        raise ApiKeyError(f"api_key_file: {file} has no key")
    return keys


def _parse_line(line: str) -> ApiKey:
    """Return the key of a line such as `sha256:... infer,metrics`. Raise `ValueError`."""
    text, *more = line.split()
    if len(more) > 1:
        raise ValueError("expected a key and its scopes, such as infer,metrics")
    digest = bytes.fromhex(hashed_key(text).removeprefix(HASH_PREFIX))
    return ApiKey(digest, parse_scopes(more[0]) if more else frozenset({Scope.INFER}))


def parse_scopes(text: str) -> frozenset[Scope]:
    """Return the scopes of a list such as `infer,metrics`. Raise `ValueError`."""
    names = text.split(",")
    if not set(names) <= ALL_SCOPES:
        raise ValueError(f"scopes are {', '.join(sorted(ALL_SCOPES))}, separated by commas")
    return frozenset(Scope(name) for name in names)
