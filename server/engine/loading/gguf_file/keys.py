"""Read the metadata of an architecture so that no key is left out."""

from typing import Any, TypeAlias

from pruners.architecture import UnsupportedModelError

Value: TypeAlias = Any
"""What a GGUF key may hold: a number, a string, a list of them."""


class Keys:
    """The keys `{architecture}.*` of a GGUF file. Every reading takes its key away.

    What is left at the end is a key that nobody applies: `finish` refuses the file.
    """

    def __init__(self, metadata: dict[str, Value], architecture: str) -> None:
        self.architecture = architecture
        self._prefix = f"{architecture}."
        self._left = {
            key.removeprefix(self._prefix): value
            for key, value in metadata.items()
            if key.startswith(self._prefix)
        }

    def refuse(self, key: str, value: object, why: str) -> UnsupportedModelError:
        """Return an error that names the key and its value."""
        return UnsupportedModelError(f"GGUF key {self._prefix}{key} = {value!r} {why}")

    def take(self, key: str, default: Value = None) -> Value:
        """Return a value of any type."""
        return self._left.pop(key, default)

    def has(self, key: str) -> bool:
        """Return whether a key is there and was not read yet."""
        return key in self._left

    def count(self, key: str, default: int | None = None) -> int:
        """Return a whole number above 0. Raises `UnsupportedModelError` for others."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise self.refuse(key, value, "is not supported; one whole number above 0 is")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0. Raises `UnsupportedModelError` for others."""
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise self.refuse(key, value, "is not supported; one number above 0 is")
        return float(value)

    def scale(self, key: str, default: float) -> float:
        """Return a finite number above 0, or `default` if it is 0 or not there."""
        if self._left.get(key, 0) == 0:
            self.take(key)
            return default
        return self.number(key)

    def neutral(self, key: str, *values: object, close: float | None = None) -> None:
        """Accept a key only where its value changes nothing: one of `values`, or near `close`."""
        if key not in self._left:
            return
        value = self._left.pop(key)
        near = (
            close is not None
            and isinstance(value, int | float)
            and abs(value - close) <= 1e-5 * abs(close)
        )
        if value not in values and not near:
            raise self.refuse(key, value, "is not supported")

    def finish(self, harmless: frozenset[str]) -> None:
        """Raise for the first key that is neither read nor known to be without effect."""
        for key, value in self._left.items():
            if key not in harmless:
                raise self.refuse(key, value, "is not supported")

    def _required(self, key: str, default: float | None) -> Value:
        value = self._left.pop(key, default)
        if value is None:
            raise UnsupportedModelError(f"GGUF key {self._prefix}{key} is missing")
        return value
