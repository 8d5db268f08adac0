"""The profile: losses of variants and readers on real prompts, and their speed on this device.

Every prompt was answered by every variant, so that the outcome of any choice is known. What a
reader loses is known by the prompt's length, and is added to that.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from policies.simulation.rates import Rates
from policies.simulation.reader_profile import ReaderProfile, check_readers
from pruners.data.readers import ReadError, read_json
from pruners.support.errors import UserError
from pruners.support.files import FolderKind, file_hash, replace_file, write_json
from pruners.support.validation import EXACT, Count, Finite, Positive, Size, validate
from pruners.variant import BASE

SCHEMA = 2
_TEXT, _ARRAYS = "profile.json", "profile.safetensors"
PROFILE = FolderKind("profile", (_TEXT,), (_TEXT, _ARRAYS))


class ProfileError(UserError):
    """A profile that cannot be read or was made for something else. The message is one line."""


@dataclass(frozen=True)
class Prompts:
    """Prompts and what was measured on them, with the base as the first variant.

    Arrays are `[prompts]` or `[prompts, variants]`. `tokens` and `answer` `[prompts]` are the
    lengths of prompts and of the base's answers, `complexity` `[prompts]` is the analyzer's score
    (0..1). In nats per token, `[prompts, variants]`: `predicted` is the loss that the server would
    predict, `loss` the measured one (KL to the base over the base's answer), `surprise` the
    variant's own loss (negative log-likelihood) on that answer.
    """

    names: tuple[str, ...]
    tokens: np.ndarray
    answer: np.ndarray
    complexity: np.ndarray
    predicted: np.ndarray
    loss: np.ndarray
    surprise: np.ndarray


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the prompts are from.

    `sha256` is that of all documents. At most `limit` prompts were taken, each answered with at
    most `answer_tokens` tokens.
    """

    name: str
    sha256: str
    limit: Count
    answer_tokens: Count
    __pydantic_config__ = EXACT


_OF_READERS = ("readers", "pairs", "keep_tasks")
_COLUMNS = ("tokens", "answer", "complexity", "predicted", "loss", "surprise")


@dataclass(frozen=True, slots=True)
class Profile:
    """What `trimtab profile` measured.

    `fingerprint` and `model` are the model's fingerprint and name, `artefact` is the identity of
    its variants, `device` the fingerprint of the machine that `machine` describes. `bytes_read` are
    the bytes that each variant reads for a token, relative to the base. `kv_loss` is the loss of
    each KV budget in nats per token, by eviction; `quest` is not simulated. `joules` are each
    variant's for a token, None if no sensor measures energy. `measured` holds the medians that
    `rates` were fitted to. The base goes with
    each of the `readers`, other variants with those that `pairs` name; a profile of an artefact
    without readers has none. `keep_tasks` are the choices (`Action.choice`) that keep the reading
    tasks.
    """

    fingerprint: str
    model: str
    artefact: str
    origin: Origin
    device: str
    machine: dict[str, Any]
    variants: tuple[str, ...]
    prompts: Prompts
    rates: Rates
    bytes_read: tuple[float, ...]
    kv_loss: dict[int, float]
    joules: tuple[float, ...] | None
    measured: dict[str, Any]
    readers: tuple[ReaderProfile, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    keep_tasks: tuple[str, ...] = (BASE,)

    def without_readers(self) -> "Profile":
        """Return the profile of the same variants, with every prompt read in full."""
        kept = tuple(name for name in self.keep_tasks if name in self.variants)
        return replace(self, readers=(), pairs=(), keep_tasks=kept)

    @property
    def identity(self) -> str:
        """32 hexadecimal digits, equal for profiles in which every policy has the same outcomes."""
        known = {k: v for k, v in asdict(self).items() if k not in ("prompts", "measured")}
        if not self.readers:  # as before there were any
            known = {k: v for k, v in known.items() if k not in _OF_READERS}
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
        digest.update("\n".join(self.prompts.names).encode())
        for name in _COLUMNS:
            digest.update(getattr(self.prompts, name).tobytes())
        return digest.hexdigest()[:32]

    def save(self, folder: Path) -> None:
        """Write the folder's two files under temporary names and rename them."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {name: getattr(self.prompts, name) for name in _COLUMNS}
        replace_file(folder / _ARRAYS, lambda path: save_file(numbers, path))
        body = {
            **{k: v for k, v in asdict(self).items() if k != "prompts"},
            "schema": SCHEMA,
            "names": self.prompts.names,
            "numbers_sha256": file_hash(folder / _ARRAYS),
        }
        write_json(folder / _TEXT, body)


@dataclass(frozen=True, slots=True)
class _Body:
    """The contents of `profile.json`."""

    schema: int
    fingerprint: str
    model: str
    artefact: str
    origin: Origin
    device: str
    machine: dict[str, Any]
    variants: tuple[str, ...]
    names: tuple[str, ...]
    rates: Rates
    bytes_read: tuple[Positive, ...]
    kv_loss: dict[Size, Finite]
    joules: tuple[Finite, ...] | None
    measured: dict[str, Any]
    numbers_sha256: str
    readers: tuple[ReaderProfile, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    keep_tasks: tuple[str, ...] = (BASE,)
    __pydantic_config__ = EXACT


def load_profile(folder: Path) -> Profile:
    """Return the profile in a folder. Raises `ProfileError`."""
    try:
        value = read_json(folder / _TEXT)
        numbers = load_file(folder / _ARRAYS)
        hashed = file_hash(folder / _ARRAYS)
    except (ReadError, OSError) as error:
        raise ProfileError(
            f"cannot read the profile {folder}: {error}; make one with `trimtab profile`"
        ) from error
    except SafetensorError as error:
        raise ProfileError(f"the profile {folder} is damaged: {error}") from error
    if isinstance(value, dict) and value.get("schema", SCHEMA) != SCHEMA:
        raise ProfileError(f"{folder} is of another version; make it with `trimtab profile`")
    try:
        body = validate(_Body, value)
        if hashed != body.numbers_sha256:
            raise ValueError(f"{_ARRAYS} is not the file that {_TEXT} was written with")
        _check(body, numbers)
    except ValueError as error:
        raise ProfileError(f"the profile {folder} is damaged: {error}") from error
    given = {one.name: getattr(body, one.name) for one in fields(body)}
    for name in ("schema", "names", "numbers_sha256"):
        del given[name]
    return Profile(prompts=Prompts(body.names, *(numbers[n] for n in _COLUMNS)), **given)


def _check(body: _Body, numbers: Mapping[str, np.ndarray]) -> None:
    """Raise `ValueError` for numbers that are not finite or do not fit together."""
    prompts, variants = len(body.names), len(body.variants)
    for name in body.names:
        int(name, 16)
    if len(set(body.variants)) < variants or body.variants[:1] != (BASE,):
        raise ValueError("variants must be the base and others, each once")
    lists = {f"rates.{one.name}": getattr(body.rates, one.name) for one in fields(body.rates)}
    lists["bytes_read"] = body.bytes_read
    if body.joules is not None:
        lists["joules"] = body.joules
    for name, values in lists.items():
        if len(values) != variants:
            raise ValueError(f"{name} has {len(values)} entries for {variants} variants")
        if min(values) < 0:
            raise ValueError(f"{name} holds negative numbers")
    check_readers(body.readers, body.pairs, body.keep_tasks, body.variants)
    if not all(body.rates.work(action, 1, 1, 1) > 0 for action in range(variants)):
        raise ValueError("by its rates, work takes no time")
    if numbers.keys() != set(_COLUMNS):
        raise ValueError(f"{_ARRAYS} holds {', '.join(sorted(numbers))}")
    for name, column in numbers.items():
        by_variant = name in ("predicted", "loss", "surprise")
        if column.shape != ((prompts, variants) if by_variant else (prompts,)):
            raise ValueError(f"{name} has shape {column.shape}")
        if not np.isfinite(column).all() or (name in ("tokens", "answer") and (column < 0).any()):
            raise ValueError(f"{name} holds numbers that are none")
