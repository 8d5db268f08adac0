"""The profile: what every variant loses on real prompts and what it takes on this device.

Full information: each prompt was read by every variant, so that any choice can be judged
afterwards.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from policies.simulation.rates import Rates
from pruners.errors import UserError
from pruners.files import Kind, file_hash, replaced, write_json

SCHEMA = 2
_TEXT, _NUMBERS = "profile.json", "profile.safetensors"
PROFILE = Kind("profile", (_TEXT,), (_TEXT, _NUMBERS))
_PLAIN = ("fingerprint", "model", "artefact", "device", "machine", "measured")


class ProfileError(UserError):
    """A profile that cannot be read or does not belong here. One clear line."""


@dataclass(frozen=True)
class Prompts:
    """One row a prompt, one column a variant (base first).

    `tokens` and `answer` are lengths, `complexity` the analyzer's score; `predicted` is the loss
    that the server would expect, `loss` the one measured (KL to the base over the base's answer)
    and `surprise` the variant's own loss on that answer, all in nats per token.
    """

    names: tuple[str, ...]
    tokens: np.ndarray
    answer: np.ndarray
    complexity: np.ndarray
    predicted: np.ndarray
    loss: np.ndarray
    surprise: np.ndarray

    @cached_property
    def lists(self) -> dict[str, list[Any]]:
        """The columns as plain numbers, by name: an array's are slow to get one by one."""
        columns = ("complexity", "predicted", "loss", "surprise")
        return {name: getattr(self, name).tolist() for name in columns}


@dataclass(frozen=True, slots=True)
class Origin:
    """What was read: a name, the SHA-256 of all of its documents, and how much of it was asked.

    `limit` prompts at most, answered with at most `answer_tokens` each.
    """

    name: str
    sha256: str
    limit: int
    answer_tokens: int


_COLUMNS = ("tokens", "answer", "complexity", "predicted", "loss", "surprise")


@dataclass(frozen=True, slots=True)
class Profile:
    """What `trimtab profile` measured.

    `fingerprint` is the model's, `model` its name, and `artefact` the identity of its variants;
    `device` is the machine's. `origin` says what the prompts were read from.
    `bytes_read` is each variant's share of the base's bytes a token, `kv_loss` what a KV budget
    costs in nats per token, `joules` a token by variant, None where no sensor measures energy.
    `measured` holds the medians that `rates` were fitted to.
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

    @property
    def identity(self) -> str:
        """Equal for profiles in which every policy does the same: 32 hexadecimal digits."""
        known = {k: v for k, v in asdict(self).items() if k not in ("prompts", "measured")}
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
        digest.update("\n".join(self.prompts.names).encode())
        for name in _COLUMNS:
            digest.update(getattr(self.prompts, name).tobytes())
        return digest.hexdigest()[:32]

    def save(self, folder: Path) -> None:
        """Writes the folder's two files under temporary names and renames them."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {name: getattr(self.prompts, name) for name in _COLUMNS}
        replaced(folder / _NUMBERS, lambda path: save_file(numbers, path))
        body = {
            **{k: v for k, v in asdict(self).items() if k != "prompts"},
            "schema": SCHEMA,
            "names": self.prompts.names,
            "numbers_sha256": file_hash(folder / _NUMBERS),
        }
        write_json(folder / _TEXT, body)


def load_profile(folder: Path) -> Profile:
    """Raises `ProfileError`."""
    try:
        body = json.loads((folder / _TEXT).read_text(encoding="utf-8"))
        numbers = load_file(folder / _NUMBERS)
        hashed = file_hash(folder / _NUMBERS)
    except OSError as error:
        raise ProfileError(
            f"cannot read the profile {folder}: {error.strerror}; make one with `trimtab profile`"
        ) from error
    except (ValueError, SafetensorError) as error:
        raise ProfileError(f"the profile {folder} is damaged: {error}") from error
    if not isinstance(body, dict):
        raise ProfileError(f"the profile {folder} is damaged: {_TEXT} holds no object")
    if body.get("schema", SCHEMA) != SCHEMA:
        raise ProfileError(f"{folder} is of another version; make it with `trimtab profile`")
    try:
        if hashed != body["numbers_sha256"]:
            raise ValueError(f"{_NUMBERS} is not the file that {_TEXT} was written with")
        found = _profile(body, numbers)
        _check(found)
    except KeyError as error:
        raise ProfileError(f"the profile {folder} is damaged: it lacks {error}") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"the profile {folder} is damaged: {error}") from error
    return found


def _profile(body: dict[str, Any], numbers: dict[str, np.ndarray]) -> Profile:
    return Profile(
        prompts=Prompts(tuple(body["names"]), *(numbers[name] for name in _COLUMNS)),
        rates=Rates(**{k: tuple(v) for k, v in body["rates"].items()}),
        variants=tuple(body["variants"]),
        origin=Origin(**body["origin"]),
        bytes_read=tuple(body["bytes_read"]),
        kv_loss={int(k): float(v) for k, v in body["kv_loss"].items()},
        joules=None if body["joules"] is None else tuple(body["joules"]),
        **{k: body[k] for k in _PLAIN},
    )


def _check(found: Profile) -> None:
    """Raises `ValueError` for numbers that are none, or do not fit together."""
    prompts, rates = found.prompts, found.rates
    count, variants = len(prompts.names), len(found.variants)
    for name in prompts.names:
        int(name, 16)
    for name in _COLUMNS:
        column = getattr(prompts, name)
        wide = name in ("predicted", "loss", "surprise")
        if column.shape != ((count, variants) if wide else (count,)):
            raise ValueError(f"its numbers do not fit together: {name} is {column.shape}")
        if not np.isfinite(column).all():
            raise ValueError(f"{name} holds numbers that are none")
    rows = [found.bytes_read, rates.stream, rates.row, rates.prompt, rates.cached]
    if found.joules is not None:
        rows.append(found.joules)
    for row in rows:
        if len(row) != variants:
            raise ValueError("its numbers do not fit together: rates are of other variants")
        if not all(math.isfinite(value) and value >= 0 for value in row):
            raise ValueError("its rates hold numbers that are none")
    if not all(map(math.isfinite, found.kv_loss.values())):
        raise ValueError("kv_loss holds numbers that are none")
