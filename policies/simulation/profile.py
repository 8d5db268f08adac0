"""The profile: what every variant loses on real prompts and what it takes on this device.

Full information: each prompt was read by every variant, so that any choice can be judged
afterwards.
"""

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from policies.simulation.rates import Rates
from pruners.errors import UserError
from pruners.files import replaced, write_json

SCHEMA = 1
_TEXT, _NUMBERS = "profile.json", "profile.safetensors"


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


_COLUMNS = ("tokens", "answer", "complexity", "predicted", "loss", "surprise")


@dataclass(frozen=True, slots=True)
class Profile:
    """What `trimtab profile` measured.

    `fingerprint` is the model's and `artefact` that of its variants; `device` the machine's.
    `bytes_read` is each variant's share of the base's bytes a token, `kv_loss` what a KV budget
    costs in nats per token, `joules` a token by variant, None where no sensor measures energy.
    `measured` holds the medians that `rates` were fitted to.
    """

    fingerprint: str
    artefact: str
    device: str
    machine: dict[str, Any]
    variants: tuple[str, ...]
    prompts: Prompts
    rates: Rates
    bytes_read: tuple[float, ...]
    kv_loss: dict[int, float]
    joules: tuple[float, ...] | None
    measured: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Writes the folder's two files under temporary names and renames them."""
        folder.mkdir(parents=True, exist_ok=True)
        numbers = {name: getattr(self.prompts, name) for name in _COLUMNS}
        body = {
            **{k: v for k, v in asdict(self).items() if k != "prompts"},
            "schema": SCHEMA,
            "names": self.prompts.names,
        }
        replaced(folder / _NUMBERS, lambda path: save_file(numbers, path))
        write_json(folder / _TEXT, body)


def load_profile(folder: Path) -> Profile:
    """Raises `ProfileError`."""
    try:
        body = json.loads((folder / _TEXT).read_text())
        numbers = load_file(folder / _NUMBERS)
    except OSError as error:
        raise ProfileError(f"cannot read the profile {folder}: {error.strerror}") from error
    except (ValueError, SafetensorError) as error:
        raise ProfileError(f"the profile {folder} is damaged: {error}") from error
    try:
        if body["schema"] != SCHEMA:
            raise ProfileError(f"{folder} is of another version; make it with `trimtab profile`")
        prompts = Prompts(tuple(body["names"]), *(numbers[name] for name in _COLUMNS))
        found = Profile(
            prompts=prompts,
            rates=Rates(**{k: tuple(v) for k, v in body["rates"].items()}),
            variants=tuple(body["variants"]),
            bytes_read=tuple(body["bytes_read"]),
            kv_loss={int(k): float(v) for k, v in body["kv_loss"].items()},
            joules=None if body["joules"] is None else tuple(body["joules"]),
            **{k: body[k] for k in ("fingerprint", "artefact", "device", "machine", "measured")},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ProfileError(f"the profile {folder} is damaged: {error!r}") from error
    shape = (len(prompts.names), len(found.variants))
    sound = prompts.loss.shape == prompts.predicted.shape == prompts.surprise.shape == shape
    if not sound or not np.isfinite(prompts.loss).all() or len(found.rates.row) != shape[1]:
        raise ProfileError(f"the profile {folder} is damaged: its numbers do not fit together")
    return found
